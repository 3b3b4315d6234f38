"""Which tokens of which requests are computed in the next step.

Pure: no tensors, no clock, no I/O. Continuous batching (Orca, OSDI '22): sequences join and leave
at every step. One token budget a step: first every running sequence that only needs its next
token, then the rest of prompts begun (chunked prefill, arXiv:2308.16369), then new ones. A
sequence enters with blocks for all its tokens; when later ones find no block, the last in line
loses its blocks and is computed again afterwards. The first in line can always take what it needs,
so every request ends. A step of next tokens alone may compute drafts behind them, with budget and
blocks that nobody else needs. Who is next, `app.engine.waiting` knows; one of a higher rank does
not wait for places and blocks of lower ones, but takes them.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Callable, Collection
from collections.abc import Sequence as Series
from operator import itemgetter
from typing import NamedTuple

from app.engine.blocks import BlockManager
from app.engine.endings import Endings
from app.engine.frames import Failed, Preempted, Resumed, Started
from app.engine.sampling import TokenLogprobs
from app.engine.sequence import Draw, Sequence, State, Work
from app.engine.waiting import OUTPUT_COST, Key, Overtaken, Waiting

__all__ = ["Notice", "Propose", "Sampled", "Scheduler"]

Notice = Started | Preempted | Resumed | Failed
Propose = Callable[[Series[Sequence], Series[int], int], Series[tuple[int, ...]]]

_first = itemgetter(0)


class Sampled(NamedTuple):
    """A sequence got tokens, or its embedding.

    With a ``reason`` (``stop``, ``length``) they were the last ones. The log probabilities are as
    in `Draw`. ``drafts``: how many tokens were drafted, and how many of them were right.
    """

    sequence: Sequence
    tokens: list[int]
    reason: str | None
    logprobs: list[TokenLogprobs] | None = None
    prompt: list[TokenLogprobs | None] | None = None
    embedding: bytes | None = None
    drafts: tuple[int, int] = (0, 0)


class Scheduler:
    """Queue and batch of one engine core.

    Line: by arrival (``fcfs``), or by larger priority then arrival (``priority``); among equals
    tenants share.

    Args:
        blocks: Where sequences get their KV blocks from.
        context: Most tokens in a sequence, prompt and output; cut down to what all blocks hold.
        eos: Tokens that end a sequence, unless it ignores them.
        max_batch: Most sequences in a step.
        max_tokens: Most tokens computed in a step.
        policy: ``fcfs`` or ``priority``.
        propose: Drafts for sequences, given how many each can use and how many there may be in all.
        fair: Whether tenants share; otherwise all are one.

    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        context: int,
        eos: Collection[int] = (),
        max_batch: int = 64,
        max_tokens: int = 512,
        policy: str = "fcfs",
        propose: Propose | None = None,
        fair: bool = True,
    ) -> None:
        self.blocks = blocks
        self.context = min(context, blocks.num_blocks * blocks.block_size)
        self.endings = Endings(eos, self.context)
        self.max_tokens = max_tokens
        self.max_batch = min(max_batch, max_tokens)  # so that every sequence moves in every step
        self.by_priority = policy == "priority"
        self._propose = propose
        self.sequences: dict[str, Sequence] = {}
        self.notices: list[Notice] = []
        self._running: list[tuple[Key, Sequence]] = []  # in line order
        self._waiting = Waiting(fair=fair)
        self._deadlines: list[tuple[float, int, Sequence]] = []  # heap; may have ended
        self._arrivals = 0
        self._overtaken = Overtaken()
        self._pass = 0
        self._stopped = ""  # why those in line could not begin in the last pass

    @property
    def busy(self) -> bool:
        """Whether any request has not ended; then the next schedule has work or fails some."""
        return bool(self.sequences)

    @property
    def running(self) -> list[Sequence]:
        """The sequences that own blocks, in line order."""
        return [sequence for _, sequence in self._running]

    def add(self, sequence: Sequence) -> bool:
        """Put a sequence in line; False (and a notice) if its prompt leaves no room for a token.

        One that is only read needs no such room.

        Raises:
            ValueError: The request is already here, or has no tokens.

        """
        if sequence.request in self.sequences or not sequence.tokens:
            raise ValueError(f"request {sequence.request} is empty or already scheduled")
        if sequence.prompt_len + (sequence.pooling is None) > self.context:
            message = self._too_long(sequence)
            self.notices.append(Failed(request=sequence.request, code="context", message=message))
            return False
        self._arrivals += 1
        rank = -sequence.priority if self.by_priority else 0
        sequence.since = self._pass
        self.sequences[sequence.request] = sequence
        self._waiting.join((rank, sequence.arrival, self._arrivals), sequence)
        if sequence.deadline is not None:
            heapq.heappush(self._deadlines, (sequence.deadline, self._arrivals, sequence))
        return True

    def _too_long(self, sequence: Sequence) -> str:
        room = f"together have room for {self.context}"
        if sequence.pooling is None:
            room = f"with this engine prompt and answer {room}"
        else:
            room = f"this engine has room for {self.context}"
        return f"the prompt has {sequence.prompt_len} tokens; {room}"

    def end(self, request: str) -> bool:
        """Forget a request and free what it holds; False if it is not here."""
        sequence = self.sequences.pop(request, None)
        if sequence is None:
            return False
        state, sequence.state = sequence.state, State.ENDED
        if state is State.RUNNING:
            self._leave(sequence)
        else:
            self._waiting.left(sequence)
        return True

    def schedule(self, now: float) -> list[Work]:
        """Choose the works of the next step and allocate their blocks.

        What happened on the way (started, preempted, resumed, failed) is added to ``notices``.

        Args:
            now: Seconds since the epoch.

        """
        self._pass += 1
        self._expire(now)
        self._urge(now)
        works, short = self._decode()
        decodes = len(works)
        budget = self.max_tokens - decodes
        for _, sequence in self._running:
            left = len(sequence.tokens) - sequence.computed
            if left > 1 and budget:
                works.append(Work(sequence, sequence.computed, min(left, budget)))
                budget -= works[-1].length
        if not short:
            self._admit(works, budget, now)
        if self._propose is not None and works and len(works) == decodes:
            return self._draft(works, self._propose)
        return works

    def commit(self, works: Series[Work], draws: Series[Draw | None]) -> list[Sampled]:
        """Take in what a step computed; sequences that got their last token are gone afterwards.

        Those that cannot go on are gone too; that is added to ``notices``.

        Args:
            works: What `schedule` returned.
            draws: For each work what follows, if the work reached the last token.

        """
        results: list[Sampled] = []
        for work, draw in zip(works, draws, strict=True):
            sequence = work.sequence
            sequence.computed = work.start + work.length
            self.blocks.record(sequence)
            if draw is None:
                continue
            if draw.error is not None:
                self.end(sequence.request)
                failed = Failed(request=sequence.request, code="error", message=draw.error)
                self.notices.append(failed)
            elif draw.embedding is not None:
                self.end(sequence.request)
                results.append(Sampled(sequence, [], "stop", embedding=draw.embedding))
            else:
                results.append(self._sampled(work, draw))
        return results

    def _sampled(self, work: Work, draw: Draw) -> Sampled:
        """Take in the tokens that a sequence got."""
        sequence = work.sequence
        tokens, reason = self.endings.extend(sequence, draw.tokens)
        self._waiting.charge(sequence.tenant, OUTPUT_COST * len(tokens))
        accepted = _common(tokens, work.drafts)
        if accepted:  # the last token is computed in the next step, whatever it is
            sequence.computed = min(sequence.computed + accepted, len(sequence.tokens) - 1)
            self.blocks.record(sequence)
        if reason is not None:
            self.end(sequence.request)
        logprobs = draw.logprobs and draw.logprobs[: len(tokens)]
        drafts = (len(work.drafts), accepted)
        return Sampled(sequence, tokens, reason, logprobs, draw.prompt, drafts=drafts)

    def _decode(self) -> tuple[list[Work], bool]:
        """Works for sequences that need their next token; whether blocks ran out for them.

        Those that got several tokens at once get their blocks here too.
        """
        works: list[Work] = []
        short = False
        index = 0
        while index < len(self._running):
            sequence = self._running[index][1]
            one = len(sequence.tokens) - sequence.computed == 1
            if one or not self.blocks.covers(sequence):
                while sequence.state is State.RUNNING and not self.blocks.grow(sequence):
                    whom = "lowest priority" if self.by_priority else "newest"
                    count = self.blocks.num_blocks
                    self._preempt(
                        f"all {count} KV blocks are in use; the {whom} request gives way"
                    )  # the last in line: not scheduled yet, at worst this one
                    self._stopped = "blocks"
                    short = True
                if sequence.state is not State.RUNNING:
                    break
            if one:
                works.append(Work(sequence, sequence.computed, 1))
            index += 1
        return works, short

    def _draft(self, works: list[Work], propose: Propose) -> list[Work]:
        """Add drafts to works that all compute a last token."""
        sequences = [work.sequence for work in works]
        rooms = [self._room(sequence) for sequence in sequences]
        drafts = propose(sequences, rooms, self.max_tokens - len(works))
        drafted = []
        for work, draft in zip(works, drafts, strict=True):
            sequence = work.sequence
            missing = self.blocks.needed(len(sequence.tokens) + len(draft)) - len(sequence.blocks)
            # as for newcomers: a block for each running sequence stays free
            if missing <= 0 or self.blocks.available - missing >= len(self._running):
                self.blocks.grow(sequence, ahead=len(draft))
            places = len(sequence.blocks) * self.blocks.block_size - len(sequence.tokens)
            drafted.append(work._replace(drafts=draft[:places]))
        return drafted

    def _room(self, sequence: Sequence) -> int:
        """How many tokens may be drafted: one more is drawn behind them."""
        if sequence.scores_prompt or sequence.pooling is not None:
            return 0
        return max(0, self.endings.left(sequence) - 1)

    def _urge(self, now: float) -> None:
        """Let those in who outrank somebody that runs; the lowest give way if need be.

        Not more than can be computed in a step: what gave way could have gone on until then.
        """
        while self._running and (entry := self._waiting.first()) is not None:
            key, sequence = entry
            rank = key[0]
            behind = sum(len(s.tokens) - s.computed for _, s in self._running)
            if rank >= self._running[-1][0][0] or behind - len(self._running) >= self.max_tokens:
                return
            if self.blocks.awaits(sequence) or not self._displace(rank, sequence):
                return
            self._waiting.take(key, sequence)
            self._enter(key, sequence, now)

    def _displace(self, rank: int, sequence: Sequence) -> bool:
        """Give a sequence blocks and a place in the batch; False if lower ranks have too few."""
        lower = [other for key, other in self._running if key[0] > rank]
        equal = len(self._running) - len(lower)
        if not self.blocks.could(sequence, after=lower, reserve=equal):
            return False
        while True:
            full = len(self._running) >= self.max_batch
            if not full and self.blocks.allocate(sequence, reserve=len(self._running)):
                return True
            scarce = f"place in the batch of {self.max_batch}" if full else "KV blocks"
            self._preempt(f"a request of priority {sequence.priority} takes its {scarce}")

    def _admit(self, works: list[Work], budget: int, now: float) -> None:
        apart: list[tuple[Key, Sequence]] = []
        while (entry := self._waiting.first()) is not None:
            key, sequence = entry
            if self.blocks.awaits(sequence):  # as long as others compute its prompt, at most
                sequence.waits = "prefix"
                self._waiting.take(key, sequence)
                apart.append(entry)
                continue
            # A block for each running sequence stays free, or the newcomer would soon be
            # preempted again. Nobody overtakes the first in line, so it cannot starve.
            if len(self._running) >= self.max_batch:
                sequence.waits = "batch"
            elif not budget:
                sequence.waits = "tokens"
            elif not self.blocks.allocate(sequence, reserve=len(self._running)):
                sequence.waits = "blocks"
            else:
                self._waiting.take(key, sequence)
                self._enter(key, sequence, now)
                left = len(sequence.tokens) - sequence.computed
                works.append(Work(sequence, sequence.computed, min(left, budget)))
                budget -= works[-1].length
                continue
            self._stopped = sequence.waits
            break
        for entry in apart:
            self._waiting.put_back(*entry)

    def _enter(self, key: Key, sequence: Sequence, now: float) -> None:
        if sequence.state is State.PREEMPTED:
            self.notices.append(Resumed(request=sequence.request))
        else:
            self._waiting.charge(sequence.tenant, len(sequence.tokens) - sequence.computed)
            self.notices.append(
                Started(
                    request=sequence.request,
                    prompt_tokens=sequence.prompt_len,
                    cached_tokens=min(sequence.cached, sequence.prompt_len),
                    time=now,
                    waited_for=self._reasons(key, sequence),
                )
            )
        sequence.state = State.RUNNING
        insort(self._running, (key, sequence), key=_first)

    def _reasons(self, key: Key, sequence: Sequence) -> list[str]:
        """Why a sequence did not begin in the first pass after it came."""
        overtaken = self._overtaken.by(key, sequence.tenant)
        if self._pass <= sequence.since + 1:
            return []
        return [reason for reason in (sequence.waits or self._stopped, overtaken) if reason]

    def _leave(self, sequence: Sequence) -> None:
        """Take a running sequence out of the batch and its blocks back."""
        self._running = [entry for entry in self._running if entry[1] is not sequence]
        self.blocks.free(sequence)

    def _preempt(self, reason: str) -> None:
        """The last in line loses its place and its blocks, and waits again."""
        key, victim = self._running[-1]
        self._leave(victim)
        victim.state = State.PREEMPTED
        self._waiting.put_back(key, victim)
        self.notices.append(Preempted(request=victim.request, reason=reason))

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, _, sequence = heapq.heappop(self._deadlines)
            if sequence.state is State.ENDED:
                continue
            self.end(sequence.request)
            message = f"its deadline passed {now - deadline:.1f} s ago"
            self.notices.append(Failed(request=sequence.request, code="timeout", message=message))


def _common(tokens: Series[int], drafts: Series[int]) -> int:
    """How many tokens at the beginning are those drafted."""
    count = 0
    while count < min(len(tokens), len(drafts)) and tokens[count] == drafts[count]:
        count += 1
    return count

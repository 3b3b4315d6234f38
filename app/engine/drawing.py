"""What follows each sequence: the sampler, with forms, plugins and log probabilities around it."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from app.engine.logprobs import logprobs
from app.engine.masks import Bits, members
from app.engine.processors import Processor, Processors
from app.engine.sampler import Sampler, too_short
from app.engine.sampling import TokenLogprobs
from app.engine.sequence import Draw, Sequence, Work
from app.engine.structured import Guide, Guides
from app.engine.tokenizer import Tokenizer

__all__ = ["Drawer"]


class Drawer:
    """Logits to draws.

    Args:
        tokenizer: Of the model.
        vocab: Width of the logits.

    """

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self._eos = tuple(tokenizer.eos)
        self._sampler = Sampler(self._eos)
        self._guides = Guides(tokenizer, vocab)
        self._processors = Processors(tokenizer)
        self._prompts: dict[str, list[TokenLogprobs | None]] = {}
        self._aside = ThreadPoolExecutor(1, "everlog-forms")
        self._looking: Future[None] | None = None

    def foresee(self, works: Seq[Work]) -> None:
        """Begin, beside the model, what can be known of the next draw before its logits are.

        Args:
            works: Those of the next `verify`. Until then nothing else may be asked for.

        """
        formed = [w.sequence for w in works if w.samples and w.sequence.params.structured]
        if formed:
            self._looking = self._aside.submit(self._guides.look, formed)

    def prepare(self, sequence: Sequence) -> None:
        """Make ready what a sequence needs.

        Raises:
            InputError: A plugin that it asks for is not to be had, or its form is malformed.

        """
        if sequence.params.structured is not None:
            self._guides.prepare(sequence)
        self._processors.prepare(sequence.request, sequence.params.processors)

    def release(self, request: str) -> None:
        """Forget a request."""
        self._sampler.release(request)
        self._guides.release(request)
        self._processors.release(request)
        self._prompts.pop(request, None)

    def score(self, work: Work, logits: torch.Tensor) -> None:
        """Keep log probabilities of a part of a prompt.

        Args:
            work: What was computed; its sequence wants them.
            logits: ``[n, vocab]`` at the work's first places.

        """
        sequence = work.sequence
        known = self._prompts.setdefault(sequence.request, [None])
        first = len(known) - 1  # the place whose successor is scored next
        skip = max(0, first - work.start)  # computed again after a preemption
        tokens = sequence.tokens[work.start + skip + 1 : work.start + len(logits) + 1]
        count = sequence.params.prompt_logprobs or 0
        known += logprobs(logits[skip:], tokens, [count] * len(tokens))

    def draw(self, logits: torch.Tensor, sequences: Seq[Sequence]) -> list[Draw]:
        """What follows each sequence, by its row of logits ``[R, vocab]``, left as they are."""
        if self._looking is not None:
            looking, self._looking = self._looking, None
            looking.result()
        done: dict[int, Draw] = {}
        hooks: dict[int, _Hook] = {}
        for row, sequence in enumerate(sequences):
            if sequence.params.structured is not None or sequence.params.processors:
                made = self._hook(sequence)
                if isinstance(made, Draw):
                    done[row] = made
                else:
                    hooks[row] = made
        plugins = {row: hook for row, hook in hooks.items() if hook.has_plugins}
        masks = {
            row: hook.mask
            for row, hook in hooks.items()
            if hook.mask is not None and row not in plugins
        }
        tokens = self._sampler.sample(logits, sequences, plugins, masks)
        scored = self._scored(logits, sequences, tokens)
        draws = []
        for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
            draw = done.get(row)
            if draw is None:
                hook = hooks.get(row)
                draw = Draw([token]) if hook is None else hook.draw(token)
            if draw.error is None and (row in scored or sequence.scores_prompt):
                prompt = self._prompts.pop(sequence.request, None)
                draw = draw._replace(logprobs=scored.get(row), prompt=prompt)
            draws.append(draw)
        return draws

    def verify(self, logits: torch.Tensor, works: Seq[Work]) -> list[Draw]:
        """What follows each work, drafts that were right among it.

        A draft is right if it is what is drawn there. So answers are what they would be without
        drafts: the same draws from the same history, place by place.

        Args:
            logits: For each work a row for its last token, and one for each of its drafts;
                ``[R, vocab]``, left as they are.
            works: Their sequences get a next token.

        """
        if not any(work.drafts for work in works):
            return self.draw(logits, [work.sequence for work in works])
        firsts = np.cumsum([0] + [1 + len(work.drafts) for work in works])[:-1]
        found: list[Draw | None] = [None] * len(works)
        lengths = [len(work.sequence.tokens) for work in works]
        left = list(range(len(works)))
        try:
            while left:
                done = [len(works[i].sequence.tokens) - lengths[i] for i in left]
                rows = torch.from_numpy(firsts[left] + done).to(logits.device)
                draws = self.draw(logits[rows], [works[i].sequence for i in left])
                for index, draw in zip(left, draws, strict=True):
                    found[index] = _joined(found[index], draw)
                went = zip(left, draws, strict=True)
                left = [i for i, draw in went if _goes_on(works[i], draw, lengths[i])]
        finally:
            for work, length in zip(works, lengths, strict=True):
                del work.sequence.tokens[length:]
        return [draw for draw in found if draw is not None]

    def _hook(self, sequence: Sequence) -> _Hook | Draw:
        """What to do for a sequence with a form or plugins; a draw where it has no choice."""
        processors = self._processors.of(sequence.request)
        if sequence.params.structured is None:
            return _Hook(sequence, processors)
        guide = self._guides.at(sequence)
        jumps = self._guides.jumps(sequence)
        if jumps and guide.error is None and (forced := guide.forced()):
            return Draw(forced)
        if guide.error is None:
            mask = guide.allowed(without=self._not_yet(sequence))
            if guide.error is None:
                return _Hook(sequence, processors, mask, guide if jumps else None)
        return Draw([], error=guide.error)

    def _not_yet(self, sequence: Sequence) -> tuple[int, ...]:
        """Tokens that would end it too early."""
        params = sequence.params
        if too_short(sequence):
            return (*self._eos, *params.stop_token_ids)
        return self._eos if params.ignore_eos else ()

    def _scored(
        self, logits: torch.Tensor, sequences: Seq[Sequence], tokens: Seq[int]
    ) -> dict[int, list[TokenLogprobs]]:
        """Log probabilities of the drawn tokens, by row, where they are wanted."""
        tops = {r: n for r, s in enumerate(sequences) if (n := s.params.logprobs) is not None}
        if not tops:
            return {}
        rows = list(tops)
        part = logits[torch.tensor(rows, device=logits.device)]
        found = logprobs(part, [tokens[row] for row in rows], list(tops.values()))
        return {row: [one] for row, one in zip(rows, found, strict=True)}


def _goes_on(work: Work, draw: Draw, length: int) -> bool:
    """Whether all that was drawn was drafted, and more; the sequence has it then."""
    tokens = work.sequence.tokens
    done = len(tokens) - length
    expected = work.drafts[done : done + len(draw.tokens)]
    if draw.error is not None or tuple(draw.tokens) != expected:
        return False
    tokens += draw.tokens
    return True


def _joined(known: Draw | None, draw: Draw) -> Draw:
    """A draw behind another one of the same sequence."""
    if known is None:
        return draw
    if draw.error is not None:  # comes again at the next step, at the first place then
        return known
    logprobs = [*(known.logprobs or ()), *(draw.logprobs or ())]
    return known._replace(tokens=[*known.tokens, *draw.tokens], logprobs=logprobs or None)


class _Hook:
    """Plugins, then the mask, on a row of scores; afterwards what comes of the drawn token.

    Without plugins the mask is left to the sampler.
    """

    def __init__(
        self,
        sequence: Sequence,
        processors: Seq[tuple[str, Processor]],
        mask: Bits | None = None,
        guide: Guide | None = None,
    ) -> None:
        self._sequence, self._processors = sequence, processors
        self.mask, self._guide = mask, guide
        self._error: str | None = None

    @property
    def has_plugins(self) -> bool:
        """Whether it changes scores."""
        return bool(self._processors)

    def __call__(self, scores: torch.Tensor) -> None:
        length = self._sequence.prompt_len
        prompt, output = self._sequence.tokens[:length], self._sequence.tokens[length:]
        for name, processor in self._processors:
            try:
                processor(scores, prompt, output)
            except Exception as error:  # it is code of others; nobody else's request fails
                self._error = f"logits processor {name}: {type(error).__name__}: {error}"
                return
        if self.mask is not None:
            allowed = torch.from_numpy(members(self.mask, len(scores))).to(scores.device)
            left = torch.full_like(scores, -torch.inf)
            left[allowed] = scores[allowed]
            scores.copy_(left)
        if not torch.isfinite(scores.max()):
            self._error = "its logits processors leave no token to choose"

    def draw(self, token: int) -> Draw:
        """The drawn token, and what must follow it."""
        if self._error is not None:
            return Draw([], error=self._error)
        return Draw([token] if self._guide is None else [token, *self._guide.add(token)])

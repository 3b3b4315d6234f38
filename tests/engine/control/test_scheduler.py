"""The scheduler with a runner that reads its tokens out of a simulated KV cache."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence as Series
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.blocks import BlockManager
from app.engine.endings import Endings
from app.engine.frames import Failed, Preempted, Resumed, Started
from app.engine.sampling import SamplingParams
from app.engine.scheduler import Propose, Scheduler
from app.engine.sequence import Draw, Sequence, Work

SIZE = 4
EOS = 0


class Cache:
    """Computes like a model: what it knows of a sequence is what its blocks hold.

    A slot holds the token of its position. The next token is a digest of all tokens read back
    through the block table, so one wrong, shared or stale block changes the answer.
    """

    def __init__(self, vocabulary: int = 50, forced: int = 0) -> None:
        self.slots: dict[tuple[int, int], int] = {}
        self.vocabulary = vocabulary
        self.forced = forced  # tokens that follow each drawn one without a choice

    def execute(self, works: list[Work]) -> list[Draw | None]:
        for work in works:
            seq, start = work.sequence, work.start
            assert start == seq.computed
            known = [*seq.tokens[: start + work.length], *work.drafts]
            for position in range(start, len(known)):
                self.slots[seq.blocks[position // SIZE], position % SIZE] = known[position]
        return [self.sample(work) if work.samples else None for work in works]

    def sample(self, work: Work) -> Draw:
        seq, tokens = work.sequence, list[int]()
        while tuple(tokens) == work.drafts[: len(tokens)]:
            end = len(seq.tokens) + len(tokens)
            read = [self.slots[seq.blocks[p // SIZE], p % SIZE] for p in range(end)]
            for _ in range(1 + self.forced):
                tokens.append(draw([*read, *tokens[end - len(seq.tokens) :]], self.vocabulary))
            if len(tokens) > len(work.drafts):
                break
        return Draw(tokens)


def draw(tokens: list[int], vocabulary: int = 50) -> int:
    return int.from_bytes(sha256(repr(tokens).encode()).digest()[:4]) % vocabulary


def alone(prompt: list[int], params: SamplingParams, context: int) -> tuple[list[int], str]:
    """What a request must give, whatever happens around it."""
    tokens = list(prompt)
    while True:
        tokens.append(draw(tokens))
        output = tokens[len(prompt) :]
        if tokens[-1] == EOS and not params.ignore_eos:
            return output, "stop"
        if len(output) == params.max_tokens or len(tokens) == context:
            return output, "length"


def drafter(longest: int) -> Propose:
    """Drafts that are right up to some place."""

    def propose(
        sequences: Series[Sequence], rooms: Series[int], budget: int
    ) -> list[tuple[int, ...]]:
        drafts = []
        for seq, room in zip(sequences, rooms, strict=True):
            draft: list[int] = []
            for place in range(min(room, longest, budget)):
                token = draw([*seq.tokens, *draft])
                draft.append(token if (len(seq.tokens) + place) % 5 else (token + 1) % 50)
            budget -= len(draft)
            drafts.append(tuple(draft))
        return drafts

    return propose


def make(num_blocks: int = 64, **kwargs: Any) -> Scheduler:
    kwargs = {"context": 100, "eos": [EOS], **kwargs}
    return Scheduler(BlockManager(num_blocks, SIZE), **kwargs)


def request(name: str, length: int = 5, **kwargs: Any) -> Sequence:
    max_tokens, ignore_eos = kwargs.pop("max_tokens", 8), kwargs.pop("ignore_eos", True)
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos)
    return Sequence(name, [ord(name[0]) % 40 + 1] * length, params, **kwargs)


@dataclasses.dataclass
class Run:
    """Drives a scheduler to the end and keeps what came out."""

    scheduler: Scheduler
    cache: Cache = dataclasses.field(default_factory=Cache)
    outputs: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    log: list[str] = dataclasses.field(default_factory=list)
    now: float = 0.0

    def step(self) -> list[Work]:
        self.now += 1.0
        works = self.scheduler.schedule(self.now)
        self.notices()
        self.check(works)
        for seq, tokens, reason, *_ in self.scheduler.commit(works, self.cache.execute(works)):
            self.outputs.setdefault(seq.request, []).extend(tokens)
            if reason is not None:
                assert seq.request not in self.reasons
                self.reasons[seq.request] = reason
        return works

    def notices(self) -> None:
        for notice in self.scheduler.notices:
            self.log.append(f"{type(notice).__name__} {notice.request}")
            if isinstance(notice, Failed):
                self.failed[notice.request] = notice.code
        self.scheduler.notices.clear()

    def check(self, works: list[Work]) -> None:
        scheduler, blocks = self.scheduler, self.scheduler.blocks
        assert sum(work.places for work in works) <= scheduler.max_tokens
        assert len(works) <= scheduler.max_batch
        assert len({work.sequence.request for work in works}) == len(works)
        owned = {block for seq in scheduler.running for block in seq.blocks}
        assert blocks.available == blocks.num_blocks - len(owned)
        for work in works:
            seq, start, length, drafts = work
            assert seq in scheduler.running
            assert length >= 1
            assert start + length <= len(seq.tokens) <= len(seq.blocks) * SIZE
            assert not drafts or (work.samples and length == 1)
            assert len(seq.tokens) + len(drafts) < scheduler.context or not drafts
            for position in range(start, start + work.places):
                assert blocks.references(seq.blocks[position // SIZE]) == 1

    def finish(self, most: int = 5000) -> Run:
        for _ in range(most):
            if not self.scheduler.busy:
                break
            assert self.step() or not self.scheduler.busy, "busy, but nothing to do"
        assert not self.scheduler.busy, "somebody starves"
        assert self.scheduler.blocks.available == self.scheduler.blocks.num_blocks
        assert not self.scheduler.running
        return self


def test_requests_join_and_leave_at_every_token() -> None:
    run = Run(make())
    run.scheduler.add(request("a", max_tokens=3))
    run.step()
    run.scheduler.add(request("b", max_tokens=1))
    works = run.step()
    assert [(w.sequence.request, w.length) for w in works] == [("a", 1), ("b", 5)]
    assert [w.sequence.request for w in run.step()] == ["a"]
    assert run.reasons == {"b": "length", "a": "length"}
    assert not run.scheduler.busy


def test_long_prompts_are_cut_to_the_budget_behind_the_decoding() -> None:
    run = Run(make(max_tokens=8, context=200))
    run.scheduler.add(request("a", 3, max_tokens=50))
    run.step()
    run.scheduler.add(request("b", 20, max_tokens=1))
    lengths = [[(w.sequence.request, w.length) for w in run.step()] for _ in range(3)]
    assert lengths == [[("a", 1), ("b", 7)], [("a", 1), ("b", 7)], [("a", 1), ("b", 6)]]
    assert run.reasons["b"] == "length"


def test_priority_goes_first_and_the_lowest_gives_way() -> None:
    run = Run(make(policy="priority", max_batch=1))
    for name, priority in (("low", 0), ("mid", 1), ("high", 2)):
        run.scheduler.add(request(name, priority=priority))
    run.finish()
    assert list(run.reasons) == ["high", "mid", "low"]


@pytest.mark.parametrize(
    ("policy", "victim", "whom"), [("fcfs", "b", "newest"), ("priority", "a", "lowest priority")]
)
def test_when_blocks_run_out_the_last_in_line_is_computed_again(
    policy: str, victim: str, whom: str
) -> None:
    scheduler = make(num_blocks=8, context=32, policy=policy)
    run = Run(scheduler)
    scheduler.add(request("a", 7, max_tokens=16, arrival=1.0))
    scheduler.add(request("b", 7, max_tokens=16, arrival=2.0, priority=1))
    reasons = []
    while scheduler.busy:
        works = scheduler.schedule(run.now)
        reasons += [n.reason for n in scheduler.notices if isinstance(n, Preempted)]
        run.notices()
        run.check(works)
        for result in scheduler.commit(works, run.cache.execute(works)):
            run.outputs.setdefault(result.sequence.request, []).extend(result.tokens)
    assert [line for line in run.log if line.startswith(("Pre", "Res"))] == [
        f"Preempted {victim}",
        f"Resumed {victim}",
    ]
    assert whom in reasons[0]
    for name in "ab":
        seq = request(name, 7)
        params = SamplingParams(max_tokens=16, ignore_eos=True)
        assert run.outputs[name] == alone(seq.tokens, params, 32)[0]


def test_a_prompt_without_room_for_an_answer_fails_and_the_limit_ends_one() -> None:
    run = Run(make(context=10))
    assert not run.scheduler.add(request("long", 10))
    run.scheduler.add(request("fits", 9))
    run.finish()
    assert run.failed == {"long": "context"}
    assert run.reasons == {"fits": "length"}
    assert len(run.outputs["fits"]) == 1


def test_the_context_is_cut_to_what_the_blocks_hold() -> None:
    run = Run(make(num_blocks=4, context=100))
    run.scheduler.add(request("a", 6, max_tokens=None))
    run.finish()
    assert len(run.outputs["a"]) == 10


def test_deadlines_end_waiting_and_running_requests() -> None:
    run = Run(make(max_batch=1))
    run.scheduler.add(request("a", max_tokens=50, deadline=3.5))
    run.scheduler.add(request("b", deadline=2.0))
    run.scheduler.add(request("c", max_tokens=2))
    run.finish()
    assert run.failed == {"b": "timeout", "a": "timeout"}
    assert run.reasons == {"c": "length"}


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_an_ended_request_frees_what_it_holds(steps: int) -> None:
    run = Run(make(max_tokens=8))
    run.scheduler.add(request("a", 20))
    for _ in range(steps):
        run.step()
    assert run.scheduler.end("a")
    assert not run.scheduler.end("a")
    assert not run.scheduler.busy
    assert run.scheduler.blocks.available == 64
    run.scheduler.add(request("a", 4))  # the name may be used again
    run.finish()
    assert "a" in run.reasons


def test_stop_tokens_count_behind_min_tokens() -> None:
    endings = Endings([EOS], context=6)
    cases = [
        (SamplingParams(), [EOS], "stop"),
        (SamplingParams(ignore_eos=True), [EOS], None),
        (SamplingParams(stop_token_ids=(7,)), [3, 7], "stop"),
        (SamplingParams(min_tokens=2, stop_token_ids=(7,)), [3, 7], None),
        (SamplingParams(min_tokens=2, stop_token_ids=(7,)), [3, 7, 7], "stop"),
        (SamplingParams(max_tokens=2), [3, 4], "length"),
        (SamplingParams(), [3] * 4, None),
        (SamplingParams(), [3] * 5, "length"),
        (SamplingParams(), [], None),
    ]
    for params, output, reason in cases:
        assert endings.reason(Sequence("a", [1], params, output=output)) == reason, params


def test_committed_output_goes_on_where_it_was() -> None:
    seq = request("a")
    whole, _ = alone(seq.tokens, seq.params, 100)
    for done in range(8):
        run = Run(make())
        run.scheduler.add(Sequence("a", list(seq.tokens), seq.params, output=whole[:done]))
        assert whole[:done] + run.finish().outputs["a"] == whole


def test_a_prefix_computed_before_is_reported() -> None:
    scheduler = make()
    run = Run(scheduler)
    scheduler.add(request("a", 13))
    run.finish()
    scheduler.add(request("a", 13))
    scheduler.schedule(run.now)
    started = scheduler.notices[0]
    assert isinstance(started, Started)
    assert (started.prompt_tokens, started.cached_tokens) == (13, 12)


lives = st.fixed_dictionaries(
    {
        "at": st.integers(0, 12),
        "tenant": st.sampled_from("ab"),
        "prompt": st.lists(st.integers(1, 2), min_size=1, max_size=24),
        "max_tokens": st.integers(1, 24),
        "priority": st.integers(0, 2),
        "cancel": st.one_of(st.none(), st.none(), st.integers(0, 20)),
        "deadline": st.one_of(st.none(), st.none(), st.integers(5, 40)),
        "salt": st.sampled_from([None, "s"]),
        "committed": st.integers(0, 6),
    }
)


@settings(max_examples=250, deadline=None)
@given(
    requests=st.lists(lives, min_size=1, max_size=9),
    num_blocks=st.integers(3, 24),
    max_batch=st.integers(1, 5),
    max_tokens=st.integers(1, 24),
    policy=st.sampled_from(["fcfs", "priority"]),
    forced=st.sampled_from([0, 0, 1, 9]),
    drafts=st.sampled_from([0, 0, 1, 3, 12]),
)
def test_everyone_ends_with_the_tokens_it_would_get_alone(
    requests: list[dict[str, Any]],
    num_blocks: int,
    max_batch: int,
    max_tokens: int,
    policy: str,
    forced: int,
    drafts: int,
) -> None:
    scheduler = make(
        num_blocks=num_blocks,
        context=40,
        max_batch=max_batch,
        max_tokens=max_tokens,
        policy=policy,
        propose=drafter(drafts) if drafts else None,
    )
    run = Run(scheduler, Cache(forced=forced))
    cancelled = set()
    expected: dict[str, tuple[list[int], str]] = {}
    for tick in range(25):
        for index, life in enumerate(requests):
            name = str(index)
            if life["at"] == tick and len(life["prompt"]) < scheduler.context:
                params = SamplingParams(max_tokens=life["max_tokens"])
                whole = expected[name] = alone(life["prompt"], params, scheduler.context)
                output = whole[0][: min(life["committed"], len(whole[0]) - 1)]
                run.outputs[name] = list(output)
                scheduler.add(
                    Sequence(
                        name,
                        list(life["prompt"]),
                        params,
                        output=output,
                        priority=life["priority"],
                        arrival=run.now,
                        deadline=None if life["deadline"] is None else float(life["deadline"]),
                        salt=life["salt"],
                        tenant=life["tenant"],
                    )
                )
            stop = life["cancel"]
            if stop is not None and life["at"] + stop == tick and scheduler.end(name):
                cancelled.add(name)
        run.step()
    run.finish()
    for name, (output, reason) in expected.items():
        if name in cancelled or name in run.failed:
            assert run.outputs[name] == output[: len(run.outputs[name])]
            assert name not in run.reasons
        else:
            assert (run.outputs[name], run.reasons[name]) == (output, reason)


def test_random_long_run_with_few_blocks() -> None:
    """Heavy contention for a long time: many preemptions, and still the right tokens."""
    rng = random.Random(7)
    scheduler = make(num_blocks=20, context=60, max_batch=8, max_tokens=16)
    run = Run(scheduler)
    expected = {}
    for index in range(120):
        prompt = [rng.randrange(1, 50) for _ in range(rng.randrange(1, 30))]
        params = SamplingParams(max_tokens=rng.randrange(1, 40), ignore_eos=True)
        expected[str(index)] = alone(prompt, params, scheduler.context)[0]
        scheduler.add(Sequence(str(index), prompt, params, arrival=run.now))
        run.step()
    run.finish()
    assert run.outputs == expected
    assert sum(line.startswith("Preempted") for line in run.log) > 5
    resumed = [line for line in run.log if line.startswith(Resumed.__name__)]
    assert len(resumed) == sum(line.startswith("Preempted") for line in run.log)

"""Prompts that are only read, in the scheduler and on their way to the log. No model."""

from __future__ import annotations

import msgspec
import pytest

from app.engine.blocks import BlockManager
from app.engine.flush import Answer
from app.engine.frames import Failed, Output, Preempted, Started
from app.engine.recovery import History
from app.engine.sampling import SamplingParams
from app.engine.scheduler import Sampled, Scheduler
from app.engine.sequence import Draw, Pooling, Sequence, Work
from app.events import codec
from app.events.catalogue import RequestEmbedded, RequestFinished, RequestStarted, Usage
from app.events.envelope import Event
from app.events.store import Claimed
from tests.engine.control.lab import READY

SIZE = 4


def scheduler(blocks: int = 32, **options: int) -> Scheduler:
    return Scheduler(BlockManager(blocks, SIZE), context=options.pop("context", 100), **options)


def read(name: str, length: int, kind: str = "mean") -> Sequence:
    tokens = list(range(1, length + 1))
    return Sequence(name, tokens, SamplingParams(), pooling=Pooling(kind, 2))


def step(made: Scheduler) -> tuple[list[Work], list[Sampled]]:
    """One step in which every work that ends a sequence gives what it should."""
    works = made.schedule(0.0)
    draws = [
        Draw([9]) if work.samples else Draw([], embedding=b"vector") if work.ends else None
        for work in works
    ]
    return works, made.commit(works, draws)


def spans(works: list[Work]) -> list[tuple[str, int, int]]:
    return [(work.sequence.request, work.start, work.length) for work in works]


def test_it_ends_when_its_prompt_is_computed() -> None:
    made = scheduler(max_tokens=8, max_batch=4)
    assert made.add(read("a", 19))
    answered = Sequence("b", [7, 7], SamplingParams(max_tokens=9))
    assert made.add(answered)
    assert (spans(step(made)[0]), made.notices.pop().request) == ([("a", 0, 8)], "a")
    assert spans(step(made)[0]) == [("a", 8, 8)]
    works, found = step(made)
    assert spans(works) == [("a", 16, 3), ("b", 0, 2)]
    assert [(f.sequence.request, f.embedding, f.reason) for f in found] == [
        ("a", b"vector", "stop"),
        ("b", None, None),
    ]
    assert list(made.sequences) == ["b"]
    assert made.blocks.num_blocks - made.blocks.available == len(answered.blocks)


@pytest.mark.parametrize(("kind", "start"), [("mean", 0), ("last", 16)])
def test_computed_blocks_are_used_only_where_no_place_in_them_counts(kind: str, start: int) -> None:
    made = scheduler()
    assert made.add(read("a", 18, kind))
    step(made)
    assert made.add(read("b", 18, kind))
    works, _ = step(made)
    assert spans(works) == [("b", start, 18 - start)]
    started = made.notices[-1]
    assert isinstance(started, Started)
    assert started.cached_tokens == start


def test_an_answer_may_use_what_was_read() -> None:
    made = scheduler()
    assert made.add(read("a", 18))
    step(made)
    assert made.add(Sequence("b", list(range(1, 19)), SamplingParams()))
    assert spans(step(made)[0]) == [("b", 16, 2)]


def test_it_may_fill_the_context() -> None:
    made = scheduler(context=20)
    assert made.add(read("a", 20))
    assert step(made)[1][0].embedding == b"vector"
    assert not made.add(read("b", 21))
    failed = made.notices[-1]
    assert isinstance(failed, Failed)
    assert failed.code == "context"
    assert failed.message == "the prompt has 21 tokens; this engine has room for 20"
    assert not made.add(Sequence("c", [1] * 20, SamplingParams()))


def test_it_begins_again_after_a_preemption() -> None:
    made = scheduler(blocks=6, max_tokens=2, max_batch=2)
    assert made.add(Sequence("a", [7] * 7, SamplingParams(max_tokens=20)))
    step(made)
    assert made.add(read("b", 12))
    seen: list[tuple[str, int, int]] = []
    found: list[Sampled] = []
    while made.busy:
        works, sampled = step(made)
        seen += [span for span in spans(works) if span[0] == "b"]
        found += [one for one in sampled if one.embedding is not None]
    assert [n.request for n in made.notices if isinstance(n, Preempted)] == ["b"]
    begun = [index for index, (_, start, _) in enumerate(seen) if start == 0]
    assert len(begun) == 2
    assert sum(length for _, _, length in seen[begun[1] :]) == 12
    assert len(found) == 1


def test_vector_and_end_are_one_append() -> None:
    queued = Event(
        seq=3,
        stream="request/r",
        version=1,
        type="request.queued",
        schema=1,
        time=2_000_000_000,
        actor="system",
        request="r",
        run=None,
        cause=None,
        data=b"{}",
    )
    answer = Answer(
        Claimed("r", "request/r", 1, queued),
        History(waiting_since=queued.time),
        worker="w",
        model=msgspec.structs.replace(READY, pooling="last"),
        max_tokens=4,
    )
    answer.start(Started(request="r/1", prompt_tokens=5, cached_tokens=2, time=3.0))
    answer.add(Output("r/1", [], "", "stop", embedding=b"\0\0\0?\0\0\0?"), 3.5)
    assert answer.due(0.01) == 0.0
    started, embedded, finished = map(codec.decode, answer.take(1.0).events)
    assert isinstance(started, RequestStarted)
    assert embedded == RequestEmbedded(
        request="r", epoch=1, vector="AAAAPwAAAD8=", dimensions=2, pooling="last"
    )
    assert isinstance(finished, RequestFinished)
    assert (finished.reason, finished.text, finished.batches) == ("stop", "", 0)
    assert finished.usage == Usage(prompt_tokens=5, cached_tokens=2)
    assert (finished.timings.prefill_ms, finished.timings.decode_ms) == (500.0, 0.0)

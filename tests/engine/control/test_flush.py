"""From frames to events: the flush rule, exact continuation, and refusals, on a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import StreamConfig
from app.engine.flush import Answer, Flusher
from app.engine.frames import Output, Started
from app.engine.recovery import History, Strikes, history, queued
from app.events import codec
from app.events.catalogue import (
    RequestCancelled,
    RequestFinished,
    RequestQueued,
    RequestStarted,
    SamplingParams,
    TokensGenerated,
)
from app.events.envelope import Event, request_stream
from app.events.memory import MemoryStore
from app.events.store import Append, Claimed, Closed, Fenced, Outcome
from tests.engine.control.lab import READY, Result

EVENT = Event(
    seq=3,
    stream="request/r",
    version=1,
    type="request.queued",
    schema=1,
    time=2_000_000_000,
    actor="system",
    request="r",
    run="run",
    cause=None,
    data=b"{}",
)


def answer(past: History | None = None, *, epoch: int = 1, max_tokens: int = 4) -> Answer:
    claim = Claimed("r", "request/r", epoch, EVENT)
    past = past or History(waiting_since=EVENT.time)
    return Answer(claim, past, worker="w", model=READY, max_tokens=max_tokens)


def started(time: float = 3.0) -> Started:
    return Started(request="r/1", prompt_tokens=5, cached_tokens=2, time=time)


def piece(token: int, text: str = "x", reason: str | None = None) -> Output:
    return Output("r/1", [token], text, reason)


def payloads(append: Append) -> list[object]:
    return [codec.decode(event) for event in append.events]


def test_the_first_token_is_due_at_once_then_the_floor_then_the_ceiling() -> None:
    one = answer()
    one.start(started())
    assert one.due(0.01) == 0.0
    one.take(100.0)
    one.add(piece(1), 4.0)
    assert one.due(0.01) == 0.0
    one.take(100.5)
    one.add(piece(2), 4.1)
    assert one.due(0.01) == pytest.approx(100.51)
    for token in (3, 4, 5):
        one.add(piece(token), 4.2)
    assert one.due(0.01) == 0.0


def test_events_carry_their_envelope_and_the_true_rhythm() -> None:
    one = answer(max_tokens=2)
    one.start(started())
    one.add(piece(1, "a"), 4.0)
    one.add(piece(2, "b"), 4.5)
    one.add(piece(3, "c", "length"), 4.75)
    append = one.take(1.0)
    assert append.fence is not None
    assert append.fence.epoch == 1
    assert {(e.actor, e.request, e.run, e.cause) for e in append.events} == {
        ("engine:w", "r", "run", "3")
    }
    first, second, third, last = payloads(append)
    assert isinstance(first, RequestStarted)
    assert (first.queue_ms, first.prompt_tokens, first.cached_tokens) == (1000.0, 5, 2)
    assert isinstance(second, TokensGenerated)
    assert (second.tokens, second.text, second.offsets) == ([1, 2], "ab", [0.0, 500.0])
    assert isinstance(third, TokensGenerated)
    assert (third.batch, third.index, third.offsets) == (1, 2, [750.0])
    assert isinstance(last, RequestFinished)
    assert (last.timings.prefill_ms, last.timings.decode_ms) == (1000.0, 750.0)
    assert last.digest == sha256(b"abc").hexdigest()


def test_a_failure_comes_behind_the_tokens_it_cut_off() -> None:
    one = answer()
    one.start(started())
    one.add(piece(1), 4.0)
    one.fail("timeout", "too late")
    types = [event.type for event in one.take(1.0).events]
    assert types == ["request.started", "tokens.generated", "request.failed"]


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.text(max_size=3), min_size=1, max_size=40),
    takes=st.sets(st.integers(0, 40)),
    crashes=st.sets(st.integers(0, 40), max_size=3),
    ceiling=st.integers(1, 6),
)
def test_batches_join_to_the_output_however_they_are_cut(
    texts: list[str], takes: set[int], crashes: set[int], ceiling: int
) -> None:
    """A crash loses what was not taken; the next claim goes on behind what was."""
    written: list[TokensGenerated] = []
    epoch = 1
    one = answer(max_tokens=ceiling)
    one.start(started())
    index = 0
    while index < len(texts):
        last = index == len(texts) - 1
        one.add(piece(index, texts[index], "length" if last else None), 4.0 + index)
        if index in takes or last:
            batches = payloads(one.take(1.0))
            written += [p for p in batches if isinstance(p, TokensGenerated)]
        index += 1
        if index in crashes and not last:
            crashes = crashes - {index}
            tokens = [token for batch in written for token in batch.tokens]
            past = History(waiting_since=0, tokens=tokens, texts=[b.text for b in written])
            epoch += 1
            one = answer(past, epoch=epoch, max_tokens=ceiling)
            one.start(started())
            index = len(tokens)
    assert [batch.batch for batch in written] == list(range(len(written)))
    assert [token for batch in written for token in batch.tokens] == list(range(len(texts)))
    assert all(len(batch.tokens) <= ceiling for batch in written)
    finished = batches[-1]
    assert isinstance(finished, RequestFinished)
    assert finished.text == "".join(texts) == "".join(batch.text for batch in written)
    assert finished.batches == len(written)


# ------------------------------------------------------------------------------- with a store


class Refusals(list[Outcome]):
    def __call__(self, answer: Answer, outcome: Outcome) -> None:
        self.append(outcome)


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    async with MemoryStore() as store:
        yield store


async def claimed(store: MemoryStore, request: str = "r", seed: int = 1) -> Claimed:
    payload = RequestQueued(request=request, params=SamplingParams(seed=seed), prompt=[1])
    event = codec.new(payload, request=request)
    await store.append(Append(stream=request_stream(request), events=[event]))
    return (await store.claim(worker="w", limit=1, lease=30))[0]


def of(claim: Claimed, past: History | None = None) -> Answer:
    past = past or History(waiting_since=claim.queued.time)
    return Answer(claim, past, worker="w", model=READY, max_tokens=4)


async def test_several_requests_share_a_commit_and_one_has_one_append_in_flight(
    store: MemoryStore,
) -> None:
    refused = Refusals()
    flusher = Flusher(store, StreamConfig(floor_ms=0), refused)
    answers = [of(await claimed(store, name)) for name in "abc"]
    task = asyncio.create_task(flusher.run())
    for one in answers:
        one.start(started())
        flusher.touch(one)
    for token in range(9):
        await asyncio.sleep(0.001)
        for one in answers:
            one.add(piece(token, f"{token} ", "length" if token == 8 else None), 4.0 + token)
            flusher.touch(one)
    await asyncio.sleep(0.05)
    task.cancel()
    for name in "abc":
        result = Result(await store.fetch(stream=request_stream(name))).check()
        assert result.tokens == list(range(9))
        assert result.finished.text == "0 1 2 3 4 5 6 7 8 "
    assert refused == []


async def test_the_floor_keeps_token_events_apart(store: MemoryStore) -> None:
    flusher = Flusher(store, StreamConfig(floor_ms=60), Refusals())
    one = of(await claimed(store))
    task = asyncio.create_task(flusher.run())
    one.start(started())
    for token in range(4):
        one.add(piece(token), 4.0)
        flusher.touch(one)
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.15)
    task.cancel()
    result = Result(await store.fetch(stream="request/r")).check()
    assert [batch.tokens for batch in result.batches] == [[0], [1, 2, 3]]


async def test_what_somebody_ended_or_claimed_is_refused(store: MemoryStore) -> None:
    refused = Refusals()
    flusher = Flusher(store, StreamConfig(), refused)
    cancelled, taken, fine = [of(await claimed(store, name)) for name in "xyz"]
    event = codec.new(RequestCancelled(request="x"), request="x")
    await store.append(Append(stream=request_stream("x"), events=[event]))
    await store.expire(worker="w")
    await store.claim(worker="other", limit=1, lease=30)
    await store.claim(worker="w", limit=1, lease=30)
    for one in (cancelled, taken):
        one.start(started())
        flusher.touch(one)
    flusher.touch(fine)
    flusher.discard(fine)
    await flusher.flush(everything=True)
    assert [type(outcome) for outcome in refused] == [Closed, Fenced]


async def test_history_is_what_was_committed(store: MemoryStore) -> None:
    flusher = Flusher(store, StreamConfig(), Refusals())
    first = await claimed(store)
    assert (await history(store, first)).tokens == []
    assert queued(first).prompt == [1]
    one = of(first)
    one.start(started())
    for token in range(3):
        one.add(piece(token, f"{token}"), 4.0 + token)
    flusher.touch(one)
    await flusher.flush(everything=True)
    one.add(piece(9, "lost"), 9.0)
    await store.expire(worker="w", reason="crash")
    second = (await store.claim(worker="w", limit=1, lease=30))[0]
    past = await history(store, second)
    assert (past.tokens, past.texts, past.decode_ms) == ([0, 1, 2], ["012"], 2000.0)
    abandoned = [e for e in await store.fetch() if e.type == "request.abandoned"]
    assert past.waiting_since == abandoned[0].time
    two = of(second, past)
    two.start(started())
    two.add(piece(3, "3", "stop"), 20.0)
    flusher.touch(two)
    await flusher.flush(everything=True)
    assert Result(await store.fetch(stream="request/r")).check().finished.text == "0123"


class Crashed:
    def __init__(self, request: str, output: int, *, started: bool = True) -> None:
        self.request, self.output, self.started = request, output, started


def test_strikes_are_crashes_in_a_row_without_new_output() -> None:
    strikes = Strikes()
    strikes.crashed([Crashed("a", 3), Crashed("waiting", 0, started=False)])
    strikes.crashed([Crashed("a", 3), Crashed("waiting", 0, started=False)])
    assert strikes.suspect("a")
    assert not strikes.suspect("waiting")
    strikes.crashed([Crashed("a", 4)])
    assert not strikes.suspect("a")
    strikes.crashed([Crashed("a", 4)])
    strikes.crashed([Crashed("a", 4)])
    assert strikes.poison("a")
    strikes.forget("a")
    assert not strikes.suspect("a")

"""The pipe from a run to the log: order, coalescing, back-pressure, failure, rate."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import app as el
from app.chat.emitter import MAX_UNFLUSHED, Emitter
from app.chat.errors import RunStopped
from app.config import StreamConfig
from app.errors import EverlogError
from app.events import catalogue
from app.events.catalogue import (
    MessageDelta,
    Payload,
    RunInterrupted,
    RunResumed,
    SessionChanged,
    StepDelta,
    StepStarted,
)
from app.events.codec import decode, new
from app.events.ids import uuid7
from app.events.open import open_store
from app.events.store import Append, EventStore, StoreClosed
from tests.chat.conftest import app_of, serving

STREAM = "thread/t"


@contextlib.asynccontextmanager
async def piping(store: EventStore, **config: float) -> AsyncIterator[Emitter]:
    emitter = Emitter(
        store, STREAM, actor="handler:x", run="r", config=StreamConfig(**config)  # type: ignore[arg-type]
    )  # fmt: skip
    pump = asyncio.create_task(emitter.pump())
    yield emitter
    emitter.close()
    await pump


async def written(store: EventStore) -> list[object]:
    return [decode(event) async for event in store.read(stream=STREAM)]


EMISSIONS = st.lists(
    st.one_of(
        st.tuples(st.just("piece"), st.sampled_from("ab"), st.text(max_size=3)),
        st.tuples(st.just("step"), st.sampled_from("ab"), st.text(max_size=3)),
        st.tuples(st.just("put"), st.sampled_from("ab")),
        st.tuples(st.just("set"), st.sampled_from("ab"), st.integers(0, 3)),
        st.tuples(st.just("commit"), st.sampled_from("ab")),
        st.tuples(st.just("yield"), st.integers(0, 2)),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(emissions=EMISSIONS, floor=st.sampled_from([0.0, 5.0]), most=st.integers(1, 5))
def test_whatever_is_emitted_stands_in_the_log_in_that_order(
    emissions: list[tuple[object, ...]], floor: float, most: int
) -> None:
    """Equal to what was emitted, once neighbouring texts and session changes are joined."""

    async def play() -> tuple[list[object], list[object]]:
        emitted: list[object] = []
        async with open_store("memory:") as store:
            async with piping(store, floor_ms=floor, max_tokens=most) as emitter:
                for kind, *given in emissions:
                    match kind, given:
                        case "piece", [str(target), str(text)]:
                            await emitter.piece(MessageDelta, target, text)
                            emitted.append(MessageDelta(message=target, text=text))
                        case "step", [str(target), str(text)]:
                            await emitter.piece(StepDelta, target, text)
                            emitted.append(StepDelta(step=target, text=text))
                        case "put" | "commit", [str(name)]:
                            emitted.append(StepStarted(step=name, name=name))
                            emitter.put(emitted[-1])  # type: ignore[arg-type]
                            if kind == "commit":
                                await emitter.flush()
                                assert joined(await written(store)) == joined(emitted)
                        case "set", [str(key), value]:
                            emitted.append(SessionChanged(values={key: value}))
                            emitter.session(emitted[-1])  # type: ignore[arg-type]
                        case "yield", [int(times)]:
                            for _ in range(times):
                                await asyncio.sleep(0)
                await emitter.finish()
            return joined(await written(store)), joined(emitted)

    log, emitted = asyncio.run(play())
    assert log == emitted


def joined(payloads: list[object]) -> list[object]:
    result: list[object] = []
    for payload in payloads:
        match result[-1] if result else None, payload:
            case MessageDelta() as a, MessageDelta() as b if a.message == b.message:
                result[-1] = MessageDelta(message=a.message, text=a.text + b.text)
            case StepDelta() as a, StepDelta() as b if a.step == b.step:
                result[-1] = StepDelta(step=a.step, text=a.text + b.text)
            case SessionChanged() as a, SessionChanged() as b:
                result[-1] = SessionChanged(values=a.values | b.values)
            case _:
                result.append(payload)
    return result


async def test_a_writer_far_ahead_of_the_log_waits(store: EventStore) -> None:
    async with piping(store) as emitter:
        async with emitter.writing:  # as while an append takes long
            for _ in range(MAX_UNFLUSHED - 1):
                await asyncio.wait_for(emitter.piece(MessageDelta, "m", "x"), 0.1)
            ahead = asyncio.create_task(emitter.piece(MessageDelta, "m", "x"))
            await asyncio.sleep(0.05)
            assert not ahead.done()
        await asyncio.wait_for(ahead, 5)
    assert sum(len(p.text) for p in await written(store)) == MAX_UNFLUSHED  # type: ignore[attr-defined]


async def test_a_session_change_waits_for_what_comes_next(store: EventStore) -> None:
    async with piping(store) as emitter:
        emitter.session(SessionChanged(values={"a": 1}))
        emitter.session(SessionChanged(removed=["a"]))
        emitter.session(SessionChanged(values={"b": 2}))
        await asyncio.sleep(0.05)
        assert await store.head() == 0
        await emitter.piece(MessageDelta, "m", "x")
        await emitter.flush()
    assert await written(store) == [
        SessionChanged(values={"b": 2}, removed=["a"]),
        MessageDelta(message="m", text="x"),
    ]


async def test_after_a_stop_only_the_session_is_written(store: EventStore) -> None:
    async with piping(store) as emitter:
        async with emitter.writing:
            emitter.session(SessionChanged(values={"a": 1}))
            await emitter.piece(MessageDelta, "m", "x")
            waiting = asyncio.create_task(emitter.flush())
            await asyncio.sleep(0)
            emitter.stop()
        with pytest.raises(RunStopped):
            await waiting
        with pytest.raises(RunStopped):
            await emitter.piece(MessageDelta, "m", "y")
        await emitter.finish()
        with pytest.raises(EverlogError):
            emitter.put(StepStarted(step="s", name="s"))
    assert await written(store) == [SessionChanged(values={"a": 1})]


async def test_text_pauses_for_as_long_as_its_last_append_took_but_not_for_ever(
    store: EventStore,
) -> None:
    floor = 0.004
    async with piping(store, floor_ms=floor * 1000) as emitter:
        await emitter.piece(MessageDelta, "m", "first")
        for _ in range(2):
            await asyncio.sleep(0)  # its append is under way
        time.sleep(0.1)  # noqa: ASYNC251 - the process is busy
        async with emitter.writing:
            assert await store.head() == 1
        await emitter.piece(MessageDelta, "m", "second")
        begun = asyncio.get_running_loop().time()
        async with asyncio.timeout(5):
            await store.wait(after=1)
        assert asyncio.get_running_loop().time() - begun > 3 * floor
    assert await store.head() == 2


async def test_a_failing_log_surfaces_in_the_handler(store: EventStore) -> None:
    async with piping(store) as emitter:
        await emitter.piece(MessageDelta, "m", "x")
        await emitter.flush()
        await store.aclose()
        with pytest.raises(StoreClosed):
            await emitter.commit(StepStarted(step="s", name="s"))
        with pytest.raises(StoreClosed):
            await emitter.piece(MessageDelta, "m", "y")


async def test_a_hundred_handlers_stream_fast(store: EventStore) -> None:
    """The aim is 100,000 tokens/s; a busy machine is given a fifth of it."""
    handlers, tokens = 100, 200

    async def on_message() -> None:
        message = el.Message()
        for _ in range(tokens):
            await message.stream_token("token ")
        await message.send()

    async with serving(store, app_of(on_message=on_message)) as chat:
        best = 0.0
        for _ in range(3):
            threads = [uuid7() for _ in range(handlers)]
            begun = time.perf_counter()
            await asyncio.gather(*(chat.post(thread) for thread in threads))
            await asyncio.gather(*(ended(store, thread) for thread in threads))
            best = max(best, handlers * tokens / (time.perf_counter() - begun))
        for thread in threads:
            state = await chat.state(thread)
            assert state.messages[1].content == "token " * tokens
    assert best > 20_000


async def ended(store: EventStore, thread: str) -> None:
    async for events in store.follow(stream=f"thread/{thread}", types=("run.completed",)):
        if events:
            return


@pytest.mark.parametrize(
    "end",
    [
        catalogue.RunStopped(run="r"),
        RunInterrupted(run="r", reason="gone"),
        RunResumed(run="r", node="b"),
    ],
)
async def test_nothing_is_written_for_a_run_that_another_process_ended_or_took(
    end: Payload,
) -> None:
    """However late this process learns of it: what it wrote last may have been under way."""
    async with open_store("memory:") as store, piping(store) as emitter:
        await emitter.commit(StepStarted(step="a", name="a"))
        await store.append(Append(stream=STREAM, events=[new(end, run="r")]))
        emitter.put(StepStarted(step="b", name="b"))
        with pytest.raises(RunStopped):
            await emitter.commit(StepStarted(step="c", name="c"))
        assert await emitter.finish()
        assert await written(store) == [StepStarted(step="a", name="a"), end]


async def test_what_others_write_to_the_thread_does_not_hinder_a_run() -> None:
    other = RunInterrupted(run="another", reason="gone")
    async with open_store("memory:") as store, piping(store) as emitter:
        for n in range(3):
            await store.append(Append(stream=STREAM, events=[new(other, run="another")]))
            await emitter.commit(StepStarted(step=str(n), name="s"))
        assert await written(store) == [
            payload for n in range(3) for payload in (other, StepStarted(step=str(n), name="s"))
        ]

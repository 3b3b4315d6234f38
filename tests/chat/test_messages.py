"""Messages, steps and sessions: what handlers write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

import app as el
from app.chat.errors import RunStopped
from app.config import StreamConfig
from app.errors import InputError
from app.events.store import EventStore
from tests.chat.conftest import app_of, serving


async def test_a_sent_message_is_in_the_log_when_send_returns(
    store: EventStore, thread: str
) -> None:
    seen: list[str] = []

    async def on_message(message: el.Message) -> None:
        sent = await el.Message(f"you said {message.content}").send()
        seen.extend(e.type for e in await chat.events(thread))
        assert sent.id

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread, "hello")
    assert seen[-1] == "message.posted"
    assert [m.content for m in state.messages] == ["hello", "you said hello"]
    assert [m.role for m in state.messages] == ["user", "assistant"]
    assert state.runs[0].status == "completed"
    assert state.runs[0].message == state.messages[0].id
    assert state.messages[1].run == state.runs[0].id


async def test_streamed_text_is_coalesced_and_whole(store: EventStore, thread: str) -> None:
    pieces = [f"{n} " for n in range(500)]

    async def on_message() -> None:
        message = el.Message()
        for piece in pieces:
            await message.stream_token(piece)
        await message.send()

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
        deltas = await chat.payloads(thread, "message.delta")
        (completed,) = await chat.payloads(thread, "message.completed")
    assert "".join(d.text for d in deltas) == "".join(pieces) == completed.content
    assert state.messages[1].content == completed.content
    assert len(deltas) < 100
    assert max(d.text.count(" ") for d in deltas) <= 16


async def test_the_first_piece_goes_out_at_once_and_others_wait_for_the_floor(
    store: EventStore, thread: str
) -> None:
    took: list[float] = []  # much longer than 60 ms on a busy machine

    async def on_message() -> None:
        message, began = el.Message(), time.monotonic()
        for n in range(20):
            await message.stream_token(f"{n} ")
            await asyncio.sleep(0.003)
        took.append(time.monotonic() - began)

    async with serving(store, app_of(on_message=on_message)) as chat:
        await chat.ask(thread)
        deltas = await chat.payloads(thread, "message.delta")
    assert deltas[0].text == "0 "
    assert 2 <= len(deltas) <= 2 + took[0] / (StreamConfig().floor_ms / 1000)


async def test_a_message_left_open_is_completed_with_the_run(
    store: EventStore, thread: str
) -> None:
    async def on_message() -> None:
        message = el.Message()
        await message.stream_token("half ")
        await message.stream_token("done")

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
        assert (await chat.types(thread))[-2:] == ["message.completed", "run.completed"]
    assert (state.messages[1].content, state.messages[1].status) == ("half done", "done")


@pytest.mark.parametrize("first", ["", "Thinking: "])
async def test_sent_first_then_streamed_then_updated(
    store: EventStore, thread: str, first: str
) -> None:
    async def on_message() -> None:
        message = el.Message(content=first)
        await message.send()
        for piece in ("a", "b", "c"):
            await message.stream_token(piece)
        await message.update()

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
    assert len(state.messages) == 2
    assert (state.messages[1].content, state.messages[1].status) == (first + "abc", "done")


async def test_update_edits_and_remove_hides(store: EventStore, thread: str) -> None:
    async def on_message() -> None:
        kept, gone = el.Message("one"), el.Message("two")
        await kept.send()
        await gone.send()
        await kept.update()  # nothing changed: no event
        kept.content = "three"
        await kept.update()
        await gone.remove()

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
        assert (await chat.types(thread)).count("message.edited") == 1
    kept, gone = state.messages[1:]
    assert (kept.content, kept.edited) == ("three", True)
    assert gone.status == "removed"


async def test_is_sequence_replaces_and_a_dict_becomes_a_code_block(
    store: EventStore, thread: str
) -> None:
    async def on_message() -> None:
        message = el.Message()
        for text in ("1 %", "50 %", "100 %"):
            await message.stream_token(text, is_sequence=True)
        await message.update()
        await el.Message({"a": [1]}).send()
        await el.ErrorMessage("no luck").send()

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
    assert state.messages[1].content == "100 %"
    assert state.messages[2].content.startswith("```json\n{")
    assert (state.messages[3].level, state.messages[3].content) == ("error", "no luck")


async def test_stream_from_any_source_of_text(store: EventStore, thread: str) -> None:
    async def words():  # type: ignore[no-untyped-def]
        for word in ("to ", "be"):
            yield word

    async def on_message() -> None:
        assert (await el.Message().stream_from(words())).content == "to be"

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
    assert (state.messages[1].content, state.messages[1].status) == ("to be", "done")


async def sentence() -> AsyncIterator[str | None]:
    yield "half "
    yield None


async def in_a_step() -> None:
    async with el.Step("work") as step:
        await step.stream_token(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: el.Message().stream_token(None), "token: must be text, not NoneType"),
        (lambda: el.Message().stream_from(sentence()), "token: must be text, not NoneType"),
        (in_a_step, "token: must be text, not NoneType"),
        (lambda: el.Message().stream_from(["a"]), "source: must be an async iterable of text"),
    ],
)
async def test_what_is_no_text_is_refused_where_it_is_given(
    store: EventStore, thread: str, call: Callable[[], Awaitable[object]], says: str
) -> None:
    async def on_message() -> None:
        await call()

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
    error = state.runs[0].error
    assert error is not None and error.message.startswith(says)
    trace = (error.traceback or "").splitlines()
    assert trace[1].endswith("in on_message")
    assert says.startswith("source") or trace[-1].startswith("hint: Pieces of OpenAI's streams")


async def test_contents_that_are_no_text(store: EventStore, thread: str) -> None:
    async def on_message() -> None:
        for content in ({"a": [1]}, 5, 2.5):
            await el.Message(content).send()  # type: ignore[arg-type]

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
    said = [m.content for m in state.messages[1:]]
    assert said == ['```json\n{\n  "a": [\n    1\n  ]\n}\n```', "5", "2.5"]


async def test_a_failing_handler_shows_a_card_without_the_traceback(
    store: EventStore, thread: str
) -> None:
    async def on_message() -> None:
        await el.Message("before").send()
        raise ValueError("no such city\nsecret second line")

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
        await chat.ask(thread)  # the thread goes on
    (run,) = state.runs
    card = state.messages[-1]
    assert run.status == "failed"
    assert run.error is not None and run.error.traceback is not None
    first, frame = run.error.traceback.splitlines()[:2]  # none of the framework's
    assert first.startswith("Traceback") and frame.endswith("in on_message")
    assert (card.level, card.content) == ("error", "ValueError: no such city")


async def test_a_call_after_the_run_has_ended_says_so(store: EventStore, thread: str) -> None:
    errors: list[BaseException] = []
    done = asyncio.Event()

    async def late() -> None:
        await asyncio.sleep(0.05)
        try:
            await el.Message("too late").send()
        except el.RunStopped:
            raise
        except Exception as error:
            errors.append(error)
        done.set()

    tasks: list[asyncio.Task[None]] = []

    async def on_message() -> None:
        tasks.append(asyncio.create_task(late()))

    async with serving(store, app_of(on_message=on_message)) as chat:
        await chat.ask(thread)
        await asyncio.wait_for(done.wait(), 5)
        assert "too late" not in str(await chat.events(thread))
    assert "has ended" in str(errors[0])


async def test_outside_of_a_handler_there_is_no_context() -> None:
    with pytest.raises(Exception, match="only inside a handler"):
        await el.Message("x").send()
    with pytest.raises(Exception, match="only inside a handler"):
        el.user_session.get("x")


# ------------------------------------------------------------------------------ sync


async def test_sync_handlers_and_steps_run_in_threads_with_their_context(
    store: EventStore, thread: str
) -> None:
    import threading

    loop_thread = threading.get_ident()
    seen: list[int] = []

    @el.step(type="tool")
    def double(x: int) -> int:
        seen.append(threading.get_ident())
        return 2 * x

    def on_message(message: el.Message) -> None:
        seen.append(threading.get_ident())
        el.user_session.set("last", message.content)
        with el.Step("outer", type="run"):
            result = double(21)
        el.run_sync(el.Message(f"{message.content}: {result}").send())

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread, "six")
        types = await chat.types(thread)
    assert state.messages[-1].content == "six: 42"
    assert loop_thread not in seen
    assert state.session == {"last": "six"}
    outer, inner = state.steps
    assert (inner.name, inner.parent, inner.input, inner.output) == (
        "double",
        outer.id,
        {"x": 21},
        42,
    )
    assert types.index("session.changed") < types.index("step.started")


async def test_make_async_carries_the_context_and_run_sync_refuses_the_loop(
    store: EventStore, thread: str
) -> None:
    @el.step(type="tool")
    def slow(x: int) -> str:
        el.user_session.set("x", x)
        return el.context.thread

    async def on_message() -> None:
        async with el.Step("parent"):
            assert await el.make_async(slow)(7) == thread
        with pytest.raises(Exception, match="blocks the event loop"):
            el.run_sync(asyncio.sleep(0))

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
    assert state.runs[0].status == "completed", state.runs[0].error
    assert state.steps[1].parent == state.steps[0].id
    assert state.session == {"x": 7}


# ----------------------------------------------------------------------------- steps


async def test_steps_nest_also_in_tasks_and_failures_are_recorded_and_raised(
    store: EventStore, thread: str
) -> None:
    @el.step(type="retrieval")
    async def search(query: str) -> list[str]:
        async with el.Step("rank", type="rerank") as s:
            s.input = query
            await s.stream_token("first")
            await asyncio.sleep(0.01)
            await s.stream_token(" second")
        return [query.upper()]

    @el.step
    async def broken() -> None:
        raise RuntimeError("out of order")

    async def on_message() -> None:
        async with el.Step(name="plan", type="run") as plan:
            plan.input = {"q": 2}
            await asyncio.gather(search("a"), search("b"))
            plan.output = "planned"
        with pytest.raises(RuntimeError, match="out of order"):
            await broken()

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
    assert state.runs[0].status == "completed", state.runs[0].error
    plan = next(s for s in state.steps if s.name == "plan")
    searches = [s for s in state.steps if s.name == "search"]
    ranks = [s for s in state.steps if s.name == "rank"]
    assert (plan.input, plan.output, plan.parent) == ({"q": 2}, "planned", None)
    assert [s.parent for s in searches] == [plan.id, plan.id]
    assert {s.parent for s in ranks} == {s.id for s in searches}
    assert [s.output for s in ranks] == ["first second"] * 2
    assert {s.input for s in ranks} == {"a", "b"}
    broken_step = next(s for s in state.steps if s.name == "broken")
    assert broken_step.status == "failed"
    assert broken_step.error is not None and broken_step.error.kind == "RuntimeError"
    assert {s.run for s in state.steps} == {state.runs[0].id}


async def test_a_step_takes_any_value(store: EventStore, thread: str) -> None:
    class Thing:
        def __repr__(self) -> str:
            return "<thing>"

    @el.step
    async def odd(x: object) -> object:
        return {"x": x, "n": 2**80, "nan": float("nan")}

    async def on_message() -> None:
        await odd(Thing())

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
    assert state.runs[0].status == "completed", state.runs[0].error
    assert state.steps[0].input == {"x": "<thing>"}


# --------------------------------------------------------------------------- session


async def test_a_new_runtime_rebuilds_the_session_from_the_log(
    store: EventStore, thread: str
) -> None:
    async def on_message(message: el.Message) -> None:
        seen = el.user_session.get("seen", [])
        seen.append(message.content)  # in place: kept only because it was set once
        el.user_session.set("seen", seen)
        el.user_session.set("gone", 1)
        el.user_session.remove("gone")
        el.user_session.get("seen").append("!")
        await el.Message(", ".join(el.user_session.get("seen"))).send()

    app = app_of(on_message=on_message)
    async with serving(store, app) as chat:
        await chat.ask(thread, "a")
    async with serving(store, app) as chat:
        state = await chat.ask(thread, "b")
        types = await chat.types(thread)
    assert state.messages[-1].content == "a, !, b, !"
    assert state.session == {"seen": ["a", "!", "b", "!"]}
    said = len(types) - 1 - types[::-1].index("message.posted")
    assert types[said - 1] == "session.changed"


async def test_only_json_goes_into_the_session(store: EventStore, thread: str) -> None:
    async def on_message() -> None:
        for value in (object(), {1: 2}, [float("nan")], ("a", "b"), {"deep": [{"x": b"bytes"}]}):
            with pytest.raises(InputError, match="user_session"):
                el.user_session.set("x", value)
        with pytest.raises(InputError, match="reserved"):
            el.user_session.set("id", "other")
        assert el.user_session.get("id") == thread
        assert el.user_session.get("x", 5) == 5

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
    assert state.runs[0].status == "completed", state.runs[0].error
    assert state.session == {}


async def test_what_is_no_longer_json_fails_the_run(store: EventStore, thread: str) -> None:
    async def on_message() -> None:
        el.user_session.set("x", [])
        el.user_session.get("x").append(object())

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
    assert state.runs[0].status == "failed"
    assert "not a JSON value" in state.messages[-1].content


# ----------------------------------------------------------------------- conversation


async def test_history_and_chat_context_are_the_conversation(
    store: EventStore, thread: str
) -> None:
    found: list[object] = []

    async def on_message(message: el.Message) -> None:
        if message.content == "fail":
            raise ValueError("x")
        await el.Message("well, ").send()
        async with el.Step("aside"):
            await el.Message("in a step").send()
        await (await el.Message("taken back").send()).remove()
        found[:] = [await el.history(), el.chat_context.to_openai(), await el.history(limit=1)]

    async with serving(store, app_of(on_message=on_message)) as chat:
        await chat.ask(thread, "one")
        await chat.ask(thread, "fail")
        await chat.ask(thread, "two")
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "well, "},
        {"role": "user", "content": "fail"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "well, "},
    ]
    assert found == [turns, turns, turns[-1:]]


async def test_a_stopped_run_writes_nothing_more(store: EventStore, thread: str) -> None:
    stubborn: list[BaseException] = []
    ended = asyncio.Event()

    async def on_message() -> None:
        message = el.Message()
        await message.stream_token("visible ")
        try:
            await asyncio.sleep(30)
        finally:
            try:
                await message.stream_token("never seen")
                await message.update()
            except RunStopped as error:
                stubborn.append(error)
            ended.set()

    async def on_stop() -> None:
        await el.Message("stopped by you").send()

    async with serving(store, app_of(on_message=on_message, on_stop=on_stop)) as chat:
        await chat.post(thread)
        await chat.until(thread, lambda s: s.messages[-1].content == "visible ")
        await chat.stop(thread)
        state = await chat.settled(thread, runs=2)
        await asyncio.wait_for(ended.wait(), 5)
    assert stubborn
    assert [(r.hook, r.status) for r in state.runs] == [
        ("on_message", "stopped"),
        ("on_stop", "completed"),
    ]
    assert [(m.content, m.status) for m in state.messages[1:]] == [
        ("visible ", "stopped"),
        ("stopped by you", "done"),
    ]

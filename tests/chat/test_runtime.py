"""The runtime: commands, the order of runs, stop, crash, drain, hooks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import app as el
from app.chat.commands import (
    DeleteCommand,
    FeedbackCommand,
    PostCommand,
    RenameCommand,
    StopCommand,
)
from app.chat.errors import Refused
from app.chat.recovery import MAX_RESUMES
from app.errors import InputError
from app.events.catalogue import MessagePosted, RunResumed, RunStarted, ThreadCreated
from app.events.codec import new
from app.events.envelope import thread_stream
from app.events.ids import uuid7
from app.events.store import Append, EventStore
from app.projections.views import Views
from tests.chat.conftest import USER, app_of, serving


async def echo(message: el.Message) -> None:
    await el.Message(f"echo {message.content}").send()


# -------------------------------------------------------------------------- commands


async def test_a_post_is_one_append(store: EventStore, thread: str) -> None:
    async with serving(store, app_of(on_message=echo)) as chat:
        ack = await chat.post(thread, "hello")
        events = await chat.events(thread)
        assert [e.type for e in events[:3]] == ["thread.created", "message.posted", "run.started"]
        assert (ack.version, ack.seq) == (events[2].version, events[2].seq)
        assert [e.actor for e in events[:2]] == ["user:local", "user:local"]
        state = await chat.settled(thread)
    assert state.owner == USER
    assert {e.run for e in await chat.events(thread) if e.actor.startswith("handler")} == {
        state.runs[0].id
    }


async def test_a_command_sent_twice_takes_effect_once(store: EventStore, thread: str) -> None:
    command, message = uuid7(), uuid7()
    async with serving(store, app_of(on_message=echo)) as chat:
        first = await chat.post(thread, id=command, message=message)
        assert await chat.post(thread, id=command, message=message) == first
        await chat.settled(thread)
    async with serving(store, app_of(on_message=echo)) as chat:
        assert await chat.post(thread, id=command, message=message) == first
        with pytest.raises(InputError, match="another message"):
            await chat.post(thread, message=message)
        state = await chat.settled(thread)
    assert len(state.runs) == 1
    assert len(state.messages) == 2


async def test_two_identical_posts_at_the_same_time(store: EventStore, thread: str) -> None:
    command = uuid7()
    async with serving(store, app_of(on_message=echo)) as chat:
        acks = await asyncio.gather(*(chat.post(thread, id=command) for _ in range(5)))
        state = await chat.settled(thread)
    assert len(set(map(str, acks))) == 1
    assert len(state.messages) == 2


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"content": ""}, "content"),
        ({"content": "  \n"}, "content"),
        ({"content": "x" * 100_001}, "content"),
        ({"thread": "../etc"}, "thread"),
        ({"thread": "ABCDEF00-0000-7000-8000-000000000000"}, "thread"),
        ({"id": "1"}, "id"),
        ({"message": "m"}, "message"),
        ({"parent": "p"}, "parent"),
        ({"parent": uuid7()}, "parent"),
    ],
)
async def test_bad_fields_are_named_and_change_nothing(
    store: EventStore, thread: str, fields: dict[str, Any], field: str
) -> None:
    async with serving(store, app_of(on_message=echo)) as chat:
        given = {"id": uuid7(), "thread": thread, "content": "hi"} | fields
        with pytest.raises(InputError) as caught:
            await chat.runtime.post(PostCommand(**given), USER)
        assert caught.value.field == field
        assert await store.head() == 0


async def test_others_threads_and_unknown_ones_are_refused(store: EventStore, thread: str) -> None:
    async with serving(store, app_of(on_message=echo)) as chat:
        with pytest.raises(Refused) as unknown:
            await chat.stop(thread)
        assert unknown.value.code == "not_found"
        state = await chat.ask(thread)
        head = await store.head()
        runtime, answer = chat.runtime, state.messages[1].id
        ids: dict[str, Any] = {"id": uuid7(), "thread": thread}
        for attempt in (
            runtime.post(PostCommand(content="x", **ids), "eve"),
            runtime.stop(StopCommand(**ids), "eve"),
            runtime.rename(RenameCommand(title="x", **ids), "eve"),
            runtime.delete(DeleteCommand(**ids), "eve"),
            runtime.feedback(FeedbackCommand(message=answer, value=1, **ids), "eve"),
            runtime.connected(thread, "eve"),
        ):
            with pytest.raises(Refused) as caught:
                await attempt
            assert caught.value.code == "forbidden"
        assert await store.head() == head


async def test_rename_feedback_delete(store: EventStore, thread: str) -> None:
    async with serving(store, app_of(on_message=echo)) as chat:
        state = await chat.ask(thread)
        question, answer = (m.id for m in state.messages)
        runtime = chat.runtime
        await runtime.rename(RenameCommand(id=uuid7(), thread=thread, title=" Trip "), USER)
        give = {"thread": thread, "value": -1, "comment": "wrong"}
        await runtime.feedback(FeedbackCommand(id=uuid7(), message=answer, **give), USER)
        for message, value, field in ((question, 1, "message"), (answer, 2, "value")):
            bad = FeedbackCommand(id=uuid7(), thread=thread, message=message, value=value)
            with pytest.raises(InputError) as caught:
                await runtime.feedback(bad, USER)
            assert caught.value.field == field
        delete = DeleteCommand(id=uuid7(), thread=thread)
        ack = await runtime.delete(delete, USER)
        assert await runtime.delete(delete, USER) == ack
        with pytest.raises(Refused, match="deleted"):
            await chat.post(thread)
        state = await chat.state(thread)
    assert (state.title, state.deleted) == ("Trip", True)
    feedback = state.messages[1].feedback
    assert feedback is not None and (feedback.value, feedback.comment) == (-1, "wrong")


# ----------------------------------------------------------------------- order of runs


async def test_messages_of_a_thread_are_handled_one_after_the_other(
    store: EventStore, thread: str
) -> None:
    under_way = 0

    async def on_message(message: el.Message) -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        await asyncio.sleep(0.02)
        await el.Message(message.content).send()
        under_way -= 1

    async with serving(store, app_of(on_message=on_message)) as chat:
        for n in range(5):
            await chat.post(thread, str(n))
        state = await chat.settled(thread, runs=5)
        events = await chat.events(thread)
    assert [m.content for m in state.messages if m.role == "assistant"] == list("01234")
    assert [r.message for r in state.runs] == [m.id for m in state.messages if m.role == "user"]
    ends = [e.version for e in events if e.type == "run.completed"]
    starts = [e.version for e in events if e.type == "run.started"]
    assert starts[1:] == [version + 1 for version in ends[:-1]]  # in one append


async def test_fifty_threads_at_the_same_time(store: EventStore) -> None:
    async def on_message(message: el.Message) -> None:
        el.user_session.set("name", message.content)
        async with el.Step("think") as s:
            await asyncio.sleep(0)
            s.output = message.content
        answer = el.Message()
        for n in range(40):
            await answer.stream_token(f"{message.content}-{n} ")
            await asyncio.sleep(0)
        await answer.send()

    threads = [uuid7() for _ in range(50)]
    async with serving(store, app_of(on_message=on_message)) as chat:
        states = await asyncio.gather(*(chat.ask(t, f"t{i}") for i, t in enumerate(threads)))
    for i, state in enumerate(states):
        assert state.session == {"name": f"t{i}"}
        assert state.messages[1].content == "".join(f"t{i}-{n} " for n in range(40))
        assert state.steps[0].output == f"t{i}"
        assert state.runs[0].status == "completed"


# -------------------------------------------------------------------------------- stop


async def test_stop_in_mid_stream_then_the_waiting_message_goes_on(
    store: EventStore, thread: str
) -> None:
    async def on_message(message: el.Message) -> None:
        if message.content == "second":
            await el.Message("fine").send()
            return
        answer = el.Message()
        while True:
            await answer.stream_token("more ")
            await asyncio.sleep(0.001)

    async with serving(store, app_of(on_message=on_message)) as chat:
        await chat.post(thread, "first")
        await chat.until(thread, lambda s: len(s.messages) > 1 and len(s.messages[1].content) > 50)
        await chat.post(thread, "second")
        stop = uuid7()
        ack = await chat.stop(thread, id=stop)
        assert await chat.stop(thread, id=stop) == ack
        state = await chat.settled(thread, runs=2)
        stopped = next(e for e in await chat.events(thread) if e.type == "run.stopped")
        after = [e for e in await chat.events(thread) if e.version > stopped.version]
    assert [r.status for r in state.runs] == ["stopped", "completed"]
    assert state.messages[1].status == "stopped"
    assert state.messages[-1].content == "fine"
    assert all(e.run != stopped.run for e in after)


async def test_stop_with_nothing_to_stop_is_acknowledged(store: EventStore, thread: str) -> None:
    async with serving(store, app_of(on_message=echo)) as chat:
        state = await chat.ask(thread)
        assert (await chat.stop(thread)).version == state.version


async def test_a_stop_taken_by_another_process_cancels_the_handler(
    store: EventStore, thread: str
) -> None:
    cancelled = asyncio.Event()

    async def on_message() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    app = app_of(on_message=on_message)
    async with serving(store, app, node="a") as here, serving(store, app, node="b") as there:
        await here.post(thread)
        await there.stop(thread)
        await asyncio.wait_for(cancelled.wait(), 5)
        state = await here.settled(thread)
    assert state.runs[0].status == "stopped"


async def test_stop_of_a_sync_handler_that_does_not_end(store: EventStore, thread: str) -> None:
    import threading

    release, wrote = threading.Event(), []

    def on_message() -> None:
        release.wait(10)
        try:
            el.run_sync(el.Message("too late").send())
        except el.RunStopped as error:
            wrote.append(error)

    async with serving(store, app_of(on_message=on_message)) as chat:
        await chat.post(thread)
        await asyncio.sleep(0.05)
        await chat.stop(thread)
        state = await chat.settled(thread)
        release.set()
        await asyncio.sleep(0.1)
    assert state.runs[0].status == "stopped"
    assert len(wrote) == 1
    assert len((await chat.state(thread)).messages) == 1


# ------------------------------------------------------------------------ crash, drain


@pytest.mark.parametrize("with_views", [False, True])
async def test_a_crash_ends_the_run_as_interrupted_and_begins_what_waits(
    store: EventStore, thread: str, with_views: bool
) -> None:
    async def on_message(message: el.Message) -> None:
        async with el.Step("work"):
            answer = el.Message()
            await answer.stream_token("half of ")
            if message.content == "first":
                await asyncio.sleep(30)

    app = app_of(on_message=on_message)
    async with serving(store, app) as chat:
        await chat.post(thread, "first")
        await chat.post(thread, "second")
        await chat.until(thread, lambda s: any(m.content == "half of " for m in s.messages))
    async with Views.open(store, None) as views:
        options = {"views": views} if with_views else {}
        async with serving(store, app, node="other", **options) as chat:
            assert (await chat.state(thread)).runs[0].status == "running"  # not its own
        async with serving(store, app, **options) as chat:
            state = await chat.settled(thread, runs=2)
    assert [(r.status, r.reason) for r in state.runs] == [
        ("interrupted", "the server went away"),
        ("completed", None),
    ]
    partial = next(m for m in state.messages if m.run == state.runs[0].id)
    assert (partial.content, partial.status) == ("half of ", "interrupted")
    assert state.steps[0].status == "interrupted"


async def test_a_resumable_run_goes_on_after_a_crash(store: EventStore, thread: str) -> None:
    calls: list[str] = []

    async def on_message(message: el.Message) -> None:
        calls.append(message.content)
        if len(calls) == 1:
            await asyncio.sleep(30)
        await el.Message("answered").send()

    app = app_of()
    app.register("on_message", on_message, resumable=True)
    async with serving(store, app) as chat:
        await chat.post(thread, "q")
        await asyncio.sleep(0.05)
    async with serving(store, app) as chat:
        state = await chat.settled(thread)
        assert "run.resumed" in await chat.types(thread)
    assert calls == ["q", "q"]
    assert [r.status for r in state.runs] == ["completed"]
    assert state.messages[-1].content == "answered"


async def test_a_resumed_handler_goes_on_from_its_session(store: EventStore, thread: str) -> None:
    async def on_message(message: el.Message) -> None:
        begin = el.user_session.get("done", 0)
        if not el.context.resumed:
            await el.Message("four parts").send()
        async with el.Step("work", type="tool"):
            for n in range(begin, 4):
                progress = await el.Message(f"part {n}").send()
                el.user_session.set("done", n + 1)
                if n == 1:
                    await progress.stream_token(", and")
                    asking = el.llm.chat("hi")
                    await asyncio.wait_for(asking, 30)
        seen = [m.content for m in el.chat_context.get()]
        await el.Message(f"{el.context.resumed} {message.content} {seen}").send()

    app = app_of()
    app.register("on_message", on_message, resumable=True)
    async with serving(store, app) as chat:
        await chat.post(thread, "q")
        await chat.until(thread, lambda s: s.requests)
    async with serving(store, app) as chat:
        state = await chat.settled(thread)
    assert [r.status for r in state.runs] == ["completed"]
    parts, last = [m.content for m in state.messages[2:-1]], state.messages[-1]
    assert parts == ["part 0", "part 1, and", "part 2", "part 3"]
    assert last.content == f"True q {['q', 'four parts']}"
    assert {m.status for m in state.messages} == {"done"}
    assert [(s.name, s.status, s.error and s.error.kind) for s in state.steps] == [
        ("work", "failed", "interrupted"),
        ("llm", "failed", "interrupted"),
        ("work", "completed", None),
    ]
    assert [r.state for r in state.requests] == ["cancelled"]


async def test_a_run_is_not_resumed_for_ever(store: EventStore, thread: str) -> None:
    async def on_message() -> None:
        await asyncio.sleep(30)

    app = app_of()
    app.register("on_message", on_message, resumable=True)
    async with serving(store, app) as chat:
        await chat.post(thread, "q")
        (run,) = (await chat.state(thread)).runs
    events = [new(RunResumed(run=run.id, node="test"), run=run.id)] * MAX_RESUMES
    await store.append(Append(stream=thread_stream(thread), events=events))
    async with serving(store, app) as chat:
        state = await chat.settled(thread)
    assert (state.runs[0].status, state.runs[0].reason) == (
        "interrupted",
        "the server went away 21 times in the middle of it",
    )


async def test_a_resumable_handler_may_end_before_the_server_does(
    store: EventStore, thread: str
) -> None:
    async def on_message(message: el.Message) -> None:
        await asyncio.sleep(0.1)
        await el.Message("answered").send()

    app = app_of()
    app.register("on_message", on_message, resumable=True)
    async with serving(store, app) as chat:
        await chat.post(thread, "q")
        await chat.runtime.drain(5)
        state = await chat.state(thread)
    assert [r.status for r in state.runs] == ["completed"]


async def test_drain_waits_then_interrupts(store: EventStore) -> None:
    async def on_message(message: el.Message) -> None:
        answer = el.Message()
        await answer.stream_token("begun ")
        await asyncio.sleep(float(message.content))
        await answer.stream_token("and ended")

    quick, slow, waiting = uuid7(), uuid7(), uuid7()
    app = app_of(on_message=on_message)
    async with serving(store, app) as chat:
        await chat.post(quick, "0.1")
        await chat.post(slow, "30")
        await chat.post(waiting, "0.2")
        await chat.post(waiting, "0.001")
        draining = asyncio.create_task(chat.runtime.drain(0.5))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as caught:
            await chat.post(quick)
        assert caught.value.code == "draining"
        await draining
        assert chat.runtime.active == 0
    done, cut = await chat.state(quick), await chat.state(slow)
    assert (done.runs[0].status, done.messages[1].content) == ("completed", "begun and ended")
    assert (cut.runs[0].status, cut.messages[1].content) == ("interrupted", "begun ")
    assert cut.messages[1].status == "interrupted"
    assert len((await chat.state(waiting)).runs) == 1  # what had not begun is left
    async with serving(store, app) as chat:
        await chat.runtime.connected(waiting, USER)
        assert len((await chat.settled(waiting, runs=2)).runs) == 2


async def test_imported_messages_are_not_answered_after_the_fact(
    store: EventStore, thread: str
) -> None:
    said = MessagePosted(message=uuid7(), role="user", content="long ago")
    events = [new(ThreadCreated(owner=USER)), new(said)]
    await store.append(Append(stream=thread_stream(thread), events=events))
    async with serving(store, app_of(on_message=echo)) as chat:
        await chat.runtime.connected(thread, USER)
        await asyncio.sleep(0.05)
        assert await chat.version(thread) == 2


async def test_runs_of_unknown_threads_do_not_hinder_the_start(store: EventStore) -> None:
    run = uuid7()
    started = new(RunStarted(run=run, hook="on_message", node="test"), run=run)
    await store.append(Append(stream=thread_stream(uuid7()), events=[started]))
    async with serving(store, app_of(on_message=echo)) as chat:
        await chat.ask(uuid7())


# ------------------------------------------------------------------------------- hooks


def hooked(calls: list[Any]) -> Any:
    async def on_chat_start() -> None:
        el.user_session.set("greeted", True)
        calls.append("start")
        await el.Message("welcome").send()

    async def on_message(message: el.Message) -> None:
        calls.append(("message", el.user_session.get("greeted")))

    async def on_chat_resume(past: el.ThreadDict) -> None:
        calls.append(("resume", [s["output"] for s in past["steps"]]))

    async def on_chat_end() -> None:
        calls.append("end")

    return app_of(
        on_chat_start=on_chat_start,
        on_message=on_message,
        on_chat_resume=on_chat_resume,
        on_chat_end=on_chat_end,
    )


async def test_hooks_of_a_conversation(store: EventStore, thread: str) -> None:
    calls: list[Any] = []
    app = hooked(calls)
    async with serving(store, app, chat_end_seconds=0.1) as chat:
        runtime = chat.runtime
        await asyncio.gather(runtime.connected(thread, USER), runtime.connected(thread, USER))
        await chat.settled(thread)
        await chat.ask(thread, "hello")
        await runtime.disconnected(thread, USER)
        await asyncio.sleep(0.15)
        assert calls == ["start", ("message", True)]  # one connection is still there
        await runtime.disconnected(thread, USER)
        await runtime.connected(thread, USER)  # back in time
        await asyncio.sleep(0.15)
        assert "end" not in calls
        await runtime.disconnected(thread, USER)
        await chat.settled(thread, runs=3)
        assert calls[-1] == "end"
    calls.clear()
    async with serving(store, app) as chat:
        await chat.runtime.connected(thread, USER)
        await chat.settled(thread, runs=4)
        await chat.runtime.connected(thread, USER)
        await chat.runtime.delete(DeleteCommand(id=uuid7(), thread=thread), USER)
        state = await chat.settled(thread, runs=5)
    assert calls == [("resume", ["welcome", "hello"]), "end"]
    assert [r.hook for r in state.runs] == [
        "on_chat_start",
        "on_message",
        "on_chat_end",
        "on_chat_resume",
        "on_chat_end",
    ]


async def test_on_chat_start_comes_before_the_first_message_without_a_connection(
    store: EventStore, thread: str
) -> None:
    calls: list[Any] = []
    async with serving(store, hooked(calls)) as chat:
        await chat.post(thread, "hello")
        state = await chat.settled(thread, runs=2)
    assert calls == ["start", ("message", True)]
    assert [m.content for m in state.messages] == ["hello", "welcome"]


async def test_an_app_without_hooks_writes_nothing_for_a_connection(
    store: EventStore, thread: str
) -> None:
    async with serving(store, app_of(on_message=echo)) as chat:
        await chat.runtime.connected(thread, USER)
        await chat.runtime.disconnected(thread, USER)
        assert await store.head() == 0


async def test_a_closing_socket_cancels_nothing(store: EventStore, thread: str) -> None:
    async def on_message() -> None:
        await asyncio.sleep(0.2)
        await el.Message("still here").send()

    async with serving(store, app_of(on_message=on_message), chat_end_seconds=0.01) as chat:
        await chat.runtime.connected(thread, USER)
        await chat.post(thread)
        await chat.runtime.disconnected(thread, USER)
        state = await chat.settled(thread)
    assert state.messages[-1].content == "still here"


async def test_a_reload_takes_effect_with_the_next_run(store: EventStore, thread: str) -> None:
    async def old(message: el.Message) -> None:
        await asyncio.sleep(0.1)
        await el.Message("old").send()

    async def fresh(message: el.Message) -> None:
        await el.Message("fresh").send()

    async with serving(store, app_of(on_message=old)) as chat:
        await chat.post(thread)
        await asyncio.sleep(0.02)
        await chat.runtime.reload(app_of(on_message=fresh))
        await chat.post(thread)
        state = await chat.settled(thread, runs=2)
    assert [m.content for m in state.messages if m.role == "assistant"] == ["old", "fresh"]

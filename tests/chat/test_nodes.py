"""Several runtimes on one log: one run at a time in a thread, and what a dead one leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import app as el
from app.chat.commands import DeleteCommand, RenameCommand
from app.chat.errors import Refused
from app.chat.jobs import FROM_API
from app.errors import StartupError
from app.events.catalogue import MessagePosted, RunResumed, RunStarted
from app.events.codec import new
from app.events.envelope import Event, thread_stream
from app.events.ids import uuid7
from app.events.open import open_store
from app.events.postgres import PostgresStore
from app.events.presence import Presence
from app.events.store import Append, EventStore, Outcome, StoreError
from app.projections.state import ThreadState
from app.projections.views import Views
from tests.chat.conftest import USER, Chat, app_of, serving
from tests.support.postgres import new_database

pytestmark = pytest.mark.timeout(60)

LEASE = 0.9

Stores = tuple[EventStore, EventStore, EventStore]


async def slow(message: el.Message) -> None:
    answer = el.Message()
    for n in range(int(message.content)):
        await answer.stream_token(f"{n} ")
        await asyncio.sleep(0.005)
    await answer.send()


async def echo(message: el.Message) -> None:
    await el.Message(f"echo {message.content}").send()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def stores(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[EventStore, EventStore, EventStore]]:
    """What three nodes have of one log; on Postgres connections of their own."""
    url = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path / 'log.db'}"}.get(request.param)
    if url is not None:
        async with open_store(url, synchronous="normal") as one:
            yield one, one, one
        return
    url = await new_database(request.getfixturevalue("postgres"))
    async with open_store(url) as one, open_store(url) as two, open_store(url) as three:
        yield one, two, three


@pytest.fixture
def store(stores: Stores) -> EventStore:
    """The log of the first node."""
    return stores[0]


@contextlib.asynccontextmanager
async def two(stores: Stores, app: Any, **options: Any) -> AsyncIterator[tuple[Chat, Chat]]:
    """Two nodes with one app."""
    async with (
        serving(stores[0], app, node="a", **options) as a,
        serving(stores[1], app, node="b", **options) as b,
    ):
        yield a, b


async def idle(*nodes: Chat) -> None:
    """Wait until no handler runs."""
    async with asyncio.timeout(5):
        while any(node.runtime.active for node in nodes):  # noqa: ASYNC110 - a look from outside
            await asyncio.sleep(0.01)


def check_order(state: ThreadState) -> None:
    """Runs follow each other, one for each message, in the order of the messages."""
    asked = [m.id for m in state.messages if m.role == "user"]
    assert [run.message for run in state.runs if run.hook == "on_message"] == asked
    for before, after in zip(state.runs, state.runs[1:], strict=False):
        assert before.ended is not None and before.ended <= after.started


# ------------------------------------------------------------------------ one after another


async def test_a_message_taken_by_another_node_waits_for_the_run(
    stores: Stores, thread: str
) -> None:
    async with two(stores, app_of(on_message=slow)) as (a, b):
        await a.post(thread, "300")
        ack = await b.post(thread, "3")
        assert (await b.types(thread))[ack.version - 1] == "message.posted"
        assert (await b.state(thread)).runs[0].status == "running"
        state = await b.settled(thread, runs=2)
    check_order(state)
    assert [m.content for m in state.messages if m.role == "assistant"][1] == "0 1 2 "


async def test_many_messages_through_two_nodes_at_once(stores: Stores, thread: str) -> None:
    async with two(stores, app_of(on_message=echo)) as nodes:
        posts = (nodes[n % 2].post(thread, f"m{n}") for n in range(40))
        acks = await asyncio.gather(*posts)
        state = await nodes[0].settled(thread, runs=40)
        await asyncio.sleep(0.05)
        state = await nodes[0].state(thread)
    assert len({ack.version for ack in acks}) == 40
    check_order(state)
    assert len(state.runs) == 40
    assert {run.status for run in state.runs} == {"completed"}
    answers = [m.content for m in state.messages if m.role == "assistant"]
    assert answers == [f"echo {m.content}" for m in state.messages if m.role == "user"]


async def test_a_thread_is_made_once_by_two_nodes(stores: Stores) -> None:
    calls: list[str] = []

    async def on_chat_start() -> None:
        calls.append("start")

    app = app_of(on_message=echo, on_chat_start=on_chat_start)
    async with two(stores, app) as (a, b):
        threads = [uuid7() for _ in range(10)]
        for thread in threads:
            await asyncio.gather(
                a.post(thread, "x"), b.post(thread, "y"), a.runtime.connected(thread, USER),
                b.runtime.connected(thread, USER),
            )  # fmt: skip
        states = [await a.settled(thread, runs=3) for thread in threads]
    for state in states:
        assert [run.hook for run in state.runs] == ["on_chat_start", "on_message", "on_message"]
    assert len(calls) == 10


async def test_a_command_sent_again_to_another_node_takes_effect_once(
    stores: Stores, thread: str
) -> None:
    async with two(stores, app_of(on_message=slow)) as (a, b):
        post, stop, rename = uuid7(), uuid7(), uuid7()
        ids = {"id": post, "message": uuid7()}
        ack = await a.post(thread, "400", **ids)
        assert await b.post(thread, "400", **ids) == ack
        named = RenameCommand(id=rename, thread=thread, title="T")
        assert await a.runtime.rename(named, USER) == await b.runtime.rename(named, USER)
        stopped = await b.stop(thread, id=stop)
        assert (await a.stop(thread, id=stop)).version >= stopped.version
        state = await a.settled(thread)
    assert (len(state.runs), len(state.messages)) == (1, 2)
    types = await a.types(thread)
    assert types.count("run.stopped") == types.count("thread.renamed") == 1


async def test_stop_and_delete_from_another_node(stores: Stores, thread: str) -> None:
    async with two(stores, app_of(on_message=slow)) as (a, b):
        await a.post(thread, "4000")
        await b.post(thread, "4000")  # waits
        await b.stop(thread)
        state = await b.until(
            thread, lambda s: [r.status for r in s.runs] == ["stopped", "running"]
        )
        await a.runtime.delete(DeleteCommand(id=uuid7(), thread=thread), USER)
        await b.post(uuid7(), "1")
        with pytest.raises(Refused, match="deleted"):
            await b.post(thread, "x")
        await idle(a, b)
        state = await b.state(thread)
    assert [run.status for run in state.runs] == ["stopped", "stopped"]
    assert state.deleted


# ----------------------------------------------------------------------------- what dies


async def test_one_of_two_survivors_ends_a_dead_nodes_run_and_goes_on(
    stores: Stores, thread: str
) -> None:
    app = app_of(on_message=slow)
    async with two(stores, app, lease=LEASE) as (a, b):
        async with serving(stores[2], app, node="c", lease=LEASE) as c:
            await c.post(thread, "4000")
            await c.post(thread, "2")
            await a.post(thread, "3")
            await c.until(thread, lambda s: any(m.role == "assistant" for m in s.messages))
        state = await b.settled(thread, runs=3)
    check_order(state)
    assert [run.status for run in state.runs] == ["interrupted", "completed", "completed"]
    assert (await b.types(thread)).count("run.interrupted") == 1


async def test_what_waits_at_a_node_that_drains_is_answered_where_people_come_back_to(
    stores: Stores, thread: str
) -> None:
    """Also by a node at which the thread was open before."""
    async with serving(stores[1], app_of(on_message=slow), node="b") as b:
        async with serving(stores[0], app_of(on_message=slow), node="a") as a:
            await a.post(thread, "20")
            await b.runtime.connected(thread, USER)
            await a.post(thread, "2")
            await a.runtime.drain()
        await b.runtime.connected(thread, USER)
        state = await b.settled(thread, runs=2)
    check_order(state)
    assert [(run.node, run.status) for run in state.runs] == [
        ("a", "completed"),
        ("b", "completed"),
    ]


async def test_what_waits_at_a_node_that_drains_is_answered_by_another_soon(
    stores: Stores, thread: str
) -> None:
    """Though nobody comes to look."""
    api = MessagePosted(message=uuid7(), role="user", content="x", metadata={FROM_API: True})
    async with serving(stores[1], app_of(on_message=slow), node="b", lease=LEASE) as b:
        async with serving(stores[0], app_of(on_message=slow), node="a", lease=LEASE) as a:
            await b.runtime.presence.beat()  # it has seen that there are two
            other = uuid7()  # here nobody is to answer
            await a.ask(other, "1")
            await stores[0].append(Append(stream=thread_stream(other), events=[new(api)]))
            await a.post(thread, "20")
            await a.post(thread, "2")
            await a.post(thread, "3")
            await a.runtime.drain()
        state = await b.settled(thread, runs=3)
        assert len((await b.state(other)).runs) == 1
    check_order(state)
    assert [(run.node, run.status) for run in state.runs] == [
        ("a", "completed"),
        *[("b", "completed")] * 2,
    ]


@pytest.mark.parametrize("read_models", [True, False])
async def test_what_waits_at_the_only_node_is_answered_when_it_is_back(
    tmp_path: Path, thread: str, read_models: bool
) -> None:
    app = app_of(on_message=slow)
    async with open_store(f"sqlite:///{tmp_path / 'log.db'}") as store:
        async with serving(store, app) as chat:
            await chat.post(thread, "20")
            await chat.post(thread, "2")
            await chat.runtime.drain()
            assert len((await chat.state(thread)).runs) == 1
        async with (
            Views.open(store, tmp_path / "views") as views,
            serving(store, app, views=views if read_models else None) as chat,
        ):
            state = await chat.settled(thread, runs=2)
    check_order(state)
    assert [run.status for run in state.runs] == ["completed"] * 2


async def test_a_message_is_not_forgotten_because_it_came_while_the_log_was_looked_at(
    stores: Stores, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is stopped elsewhere, and the next message comes just as it ends here."""
    fetch = stores[0].fetch

    async def slowly(**what: Any) -> list[Event]:
        found = await fetch(**what)
        await asyncio.sleep(0.02)
        return found

    async def think(message: el.Message) -> None:
        await asyncio.sleep(30)

    async with two(stores, app_of(on_message=think)) as (a, b):
        monkeypatch.setattr(stores[0], "fetch", slowly)
        for runs in range(1, 13):
            await a.post(thread, "x")
            await a.until(thread, lambda s, runs=runs: len(s.runs) == runs)
            await b.stop(thread)
            await asyncio.sleep(0.005 * (runs % 6))


@pytest.mark.parametrize("clean", [False, True])
async def test_one_of_two_survivors_resumes_a_resumable_run(
    stores: Stores, thread: str, clean: bool
) -> None:
    calls: list[str] = []

    async def on_message(message: el.Message) -> None:
        calls.append(message.content)
        if len(calls) == 1:
            await asyncio.sleep(30)
        await el.Message("answered").send()

    app = app_of(on_message=on_message)
    app.resumable = True
    async with two(stores, app, lease=LEASE) as (a, b):
        await asyncio.sleep(LEASE * 1.1)
        async with serving(stores[2], app, node="c", lease=LEASE) as c:
            await c.post(thread, "q")
            await asyncio.sleep(0.05)
            if clean:
                await c.runtime.drain(0.05)
        state = await b.settled(thread)
    (resumed,) = await a.payloads(thread, "run.resumed")
    assert isinstance(resumed, RunResumed) and resumed.node in ("a", "b")
    assert calls == ["q", "q"]
    assert [(r.status, r.node) for r in state.runs] == [("completed", resumed.node)]


async def test_nobody_takes_over_from_a_node_that_is_alive(stores: Stores, thread: str) -> None:
    async with two(stores, app_of(on_message=slow), lease=0.3) as (a, b):
        await a.post(thread, "300")
        state = await b.settled(thread)
    assert [(r.status, r.node) for r in state.runs] == [("completed", "a")]


class Deaf(Presence):
    """A node that cannot reach the log for a while: its beats fail, and it is slow to see that."""

    away = False

    async def _beat(self) -> frozenset[str]:
        if self.away:
            raise StoreError("no route to the database")
        return await super()._beat()


async def test_a_node_that_was_away_writes_nothing_for_runs_that_others_took(
    stores: Stores, thread: str
) -> None:
    app = app_of(on_message=slow)
    deaf = Deaf(stores[0], "deaf", lease=LEASE, place="deaf")
    async with (
        serving(stores[1], app, node="b", lease=LEASE) as b,
        serving(stores[0], app, presence=deaf) as a,
    ):
        await a.post(thread, "4000")
        await a.until(thread, lambda s: any(len(m.content) > 20 for m in s.messages[1:]))
        deaf.away = True
        await b.until(thread, lambda s: s.runs[0].status == "interrupted")
        version = await b.version(thread)
        assert deaf.trouble == "no route to the database"
        await idle(a)
        blocked = asyncio.create_task(a.post(thread, "1"))
        await asyncio.sleep(0.1)
        assert not blocked.done()
        assert await b.version(thread) == version
        deaf.away = False
        await blocked
        state = await b.settled(thread, runs=2)
    assert [r.status for r in state.runs] == ["interrupted", "completed"]


async def test_a_log_that_is_away_for_all_interrupts_nobody(stores: Stores, thread: str) -> None:
    """Beats of all fail for longer than the lease, then all come back: nobody takes over."""
    app = app_of(on_message=slow)
    deaf = [Deaf(stores[n], name, lease=LEASE, place=name) for n, name in enumerate("ab")]
    async with (
        serving(stores[0], app, presence=deaf[0]) as a,
        serving(stores[1], app, presence=deaf[1]) as b,
    ):
        await asyncio.sleep(LEASE * 1.1)
        await a.post(thread, "300")
        for presence in deaf:
            presence.away = True
        await asyncio.sleep(LEASE * 2)
        deaf[1].away = False  # the other a little later
        await asyncio.sleep(LEASE / 3)
        deaf[0].away = False
        state = await b.settled(thread)
    assert [(r.status, r.node) for r in state.runs] == [("completed", "a")]
    assert state.messages[1].content == "".join(f"{n} " for n in range(300))


async def test_a_run_whose_beginning_was_not_known_to_be_written_is_ended(
    store: EventStore, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit was reported failed, yet it is there: nobody makes that run."""
    app = app_of(on_message=echo)
    append = store.append

    async def unsure(given: Append) -> Outcome:
        outcome = await append(given)
        if given.stream == thread_stream(thread) and any(
            event.type == "run.started" for event in given.events
        ):
            monkeypatch.setattr(store, "append", append)
            raise StoreError("the connection broke")
        return outcome

    async with serving(store, app, lease=LEASE) as chat:
        monkeypatch.setattr(store, "append", unsure)
        with pytest.raises(StoreError):
            await chat.post(thread, "1")
        await chat.post(thread, "2")
        state = await chat.settled(thread, runs=2)
    assert [r.status for r in state.runs] == ["interrupted", "completed"]
    started = [p for p in await chat.payloads(thread, "run.started") if isinstance(p, RunStarted)]
    assert len(started) == 2


async def test_a_file_has_one_process_so_all_others_are_gone(tmp_path: Path, thread: str) -> None:
    """Under another name after a restart (another port), what was left is ended at once."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    app = app_of(on_message=slow)
    async with open_store(url) as store, serving(store, app, node="old") as chat:
        await chat.post(thread, "4000")
    async with open_store(url) as store, serving(store, app, node="new") as chat:
        state = await chat.settled(thread, seconds=2)
    assert [r.status for r in state.runs] == ["interrupted"]


# --------------------------------------------------------------------------------- names


async def test_a_name_that_is_alive_is_refused(store: EventStore) -> None:
    app = app_of(on_message=echo)
    async with serving(store, app, node="a", lease=LEASE):
        with pytest.raises(StartupError, match="'a'") as caught:
            async with serving(store, app, presence=Presence(store, "a", lease=LEASE)):
                pass
        assert caught.value.hint is not None and "server.node" in caught.value.hint


async def test_the_name_of_a_dead_process_elsewhere_is_free_after_its_lease(
    store: EventStore,
) -> None:
    app = app_of(on_message=echo)
    async with serving(store, app, node="a", lease=LEASE):
        pass
    async with serving(store, app, presence=Presence(store, "a", lease=LEASE)) as chat:
        await chat.ask(uuid7())


async def test_a_run_looks_into_the_database_only_for_commands(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this process has written or heard of is not asked for again."""
    asked: list[str] = []
    look = stores[0].stream_version

    async def looking(stream: str) -> int:
        asked.append(stream)
        return await look(stream)

    async with serving(stores[0], app_of(on_message=slow), node="a") as chat:
        thread = uuid7()
        version = (await chat.ask(thread, "5")).version
        with monkeypatch.context() as patch:
            patch.setattr(stores[0], "stream_version", looking)
            await chat.post(thread, "5")
            async with asyncio.timeout(5):
                async for events in stores[0].follow(after=version, stream=thread_stream(thread)):
                    if any(event.type == "run.completed" for event in events):
                        break
        await idle(chat)
    if isinstance(stores[0], PostgresStore):  # elsewhere it is known without a look
        assert asked.count(thread_stream(thread)) <= 2

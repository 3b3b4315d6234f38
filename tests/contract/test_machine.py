"""Random histories against the model: invariants I1 to I7 and I9 of the design.

Every step is a burst of operations submitted together, some of them cancelled; after it the log
must be what the model says, and every follower must have seen exactly that.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.events.envelope import Event
from app.events.queue import Request, fold, to_lease
from app.events.store import ANY, Append, EventStore, Fence
from tests.contract.conftest import open_named
from tests.contract.model import Entry, Model
from tests.contract.support import Clock, life, note, queued

STREAMS = ("thread/a", "thread/b", "thread/c")
REQUESTS = ("r1", "r2", "r3", "r4")
WORKERS = ("w1", "w2")
LIFE = (
    "request.started",
    "tokens.generated",
    "request.preempted",
    "request.resumed",
    "request.finished",
    "request.failed",
    "request.cancelled",
    "request.abandoned",
)

plain = st.builds(
    lambda stream, count, expected, command: ("plain", stream, count, expected, command),
    st.sampled_from(STREAMS),
    st.integers(1, 3),
    st.one_of(st.just(ANY), st.integers(0, 6)),
    st.one_of(st.none(), st.sampled_from(("c1", "c2", "c3"))),
)
enqueue = st.builds(
    lambda request, priority: ("enqueue", request, priority),
    st.sampled_from(REQUESTS),
    st.integers(0, 2),
)
living = st.builds(
    lambda types, request, epoch: ("life", types, request, epoch),
    st.lists(st.sampled_from(LIFE), min_size=1, max_size=3),
    st.sampled_from(REQUESTS),
    st.one_of(st.none(), st.integers(1, 3), st.just("now")),
)
bursts = st.lists(
    st.tuples(st.one_of(plain, enqueue, living), st.booleans()), min_size=1, max_size=8
)


def home(request: str) -> str:
    """The stream of a request."""
    return STREAMS[int(request[1:]) % len(STREAMS)]


def entry(event: Event) -> Entry:
    own = event.type in ("request.claimed", "request.abandoned") and event.actor != "system"
    own = own or event.type == "request.claimed"
    data = b"" if own or event.cause is not None else event.data
    return (event.stream, event.version, event.type, data)


class Follower:
    """Follows in the background; can be dropped and goes on from its cursor."""

    def __init__(self, stream: str | None, types: list[str] | None) -> None:
        self.stream, self.types = stream, types
        self.cursor = 0
        self.seen: list[Event] = []
        self.more = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def resume(self, store: EventStore) -> None:
        self.task = asyncio.get_running_loop().create_task(self._follow(store))

    async def _follow(self, store: EventStore) -> None:
        async for batch in store.follow(after=self.cursor, stream=self.stream, types=self.types):
            self.seen += batch
            self.cursor = batch[-1].seq if self.stream is None else batch[-1].version
            self.more.set()

    async def reached(self, count: int) -> None:
        while len(self.seen) < count:
            self.more.clear()
            await self.more.wait()

    async def drop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
            assert self.task.cancelled(), self.task.exception()

    def wants(self, event: Event) -> bool:
        return (self.stream is None or event.stream == self.stream) and (
            self.types is None or event.type in self.types
        )


class LogMachine(RuleBasedStateMachine):
    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.model = Model()
        self.counter = 0
        self.store: EventStore
        self.stack = AsyncExitStack()
        self.followers = [
            Follower(None, None),
            Follower("thread/a", None),
            Follower("thread/b", ["thread.renamed"]),
            Follower(None, ["request.claimed", "request.abandoned"]),
        ]

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    @initialize()
    def open(self) -> None:
        self.run(self._open())

    async def _open(self) -> None:
        self.store = await self.stack.enter_async_context(
            open_named(self.kind, self.directory, clock=self.clock, ring=12)
        )
        for follower in self.followers:
            follower.resume(self.store)

    # ------------------------------------------------------------------------------ appends

    @rule(burst=bursts)
    def burst(self, burst: list[tuple[tuple[Any, ...], bool]]) -> None:
        self.run(self._burst([(self._append(spec), cancel) for spec, cancel in burst]))

    async def _burst(self, burst: list[tuple[tuple[Append, int], bool]]) -> None:
        before = len(self.model.log)
        tasks = [asyncio.ensure_future(self.store.append(append)) for (append, _), _ in burst]
        await asyncio.sleep(0)  # they are queued now
        for task, (_, cancel) in zip(tasks, burst, strict=True):
            if cancel:
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await self.store.append(Append(stream="user/fence", events=[note("after")]))
        written = {e.data for e in await self.store.fetch(after=before)}
        for ((append, priority), cancelled), result in zip(burst, results, strict=True):
            if cancelled and not any(e.data in written for e in append.events):
                continue  # it was taken back, or refused
            expected = self.model.append(append, priority)
            assert cancelled or result == expected, (append, result, expected)
        self.model.put("user/fence", "thread.renamed", note("after").data)

    def _append(self, spec: tuple[Any, ...]) -> tuple[Append, int]:
        if spec[0] == "plain":
            _, stream, count, expected, command = spec
            events = [note(self._unique()) for _ in range(count)]
            return Append(stream=stream, events=events, expected=expected, command=command), 0
        if spec[0] == "enqueue":
            _, request, priority = spec
            event = queued(request, priority=priority, model=None)
            return Append(stream=home(request), events=[event, note(self._unique())]), priority
        _, types, request, epoch = spec
        if epoch == "now":
            row = self.model.requests.get(request)
            epoch = row.epoch if row is not None else 1
        fence = None if epoch is None else Fence(request, epoch)
        events = [life(event_type, request, epoch or 0) for event_type in types]
        events.append(note(self._unique()))
        return Append(stream=home(request), events=events, fence=fence), 0

    def _unique(self) -> str:
        self.counter += 1
        return f"n{self.counter}"

    # -------------------------------------------------------------------------------- queue

    @rule(worker=st.sampled_from(WORKERS), limit=st.integers(1, 3))
    def claim(self, worker: str, limit: int) -> None:
        claimed = self.run(self.store.claim(worker=worker, limit=limit, lease=10))
        expected = self.model.claim(worker, limit, self.clock.now + 10 * 10**9)
        assert [(c.request, c.epoch) for c in claimed] == expected
        for c in claimed:
            assert (c.queued.request, c.queued.type) == (c.request, "request.queued")

    @rule(worker=st.sampled_from(WORKERS))
    def heartbeat(self, worker: str) -> None:
        held = self.run(self.store.heartbeat(worker=worker, lease=10))
        assert set(held) == self.model.heartbeat(worker, self.clock.now + 10 * 10**9)

    @rule(worker=st.one_of(st.none(), st.sampled_from(WORKERS)), seconds=st.sampled_from((0, 6)))
    def expire(self, worker: str | None, seconds: int) -> None:
        self.clock.advance(seconds)
        lost = self.run(self.store.expire(worker=worker))
        assert set(lost) == self.model.expire(worker, self.clock.now)
        for request in lost:
            self.model.give_back(request)

    # ---------------------------------------------------------------------------- followers

    @rule(which=st.integers(0, 3))
    def drop_and_resume(self, which: int) -> None:
        async def again() -> None:
            await self.followers[which].drop()
            self.followers[which].resume(self.store)

        self.run(again())

    @rule()
    def restart(self) -> None:
        if self.kind == "memory":
            return

        async def again() -> None:
            for follower in self.followers:
                await follower.drop()
            await self.stack.aclose()
            await self._open()

        self.run(again())

    # --------------------------------------------------------------------------- invariants

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "store"):
            self.run(self._agrees())

    async def _agrees(self) -> None:
        events = [event async for event in self.store.read()]
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        assert [entry(e) for e in events] == self.model.log
        assert await self.store.head() == len(events)
        for stream in STREAMS:
            assert await self.store.stream_version(stream) == self.model.versions.get(stream, 0)
        await self._check_queue(events)
        for follower in self.followers:
            wanted = [event for event in events if follower.wants(event)]
            await asyncio.wait_for(follower.reached(len(wanted)), 5)
            assert follower.seen == wanted

    async def _check_queue(self, events: list[Event]) -> None:
        rows: dict[str, Request | None] = {}
        for event in events:
            if event.request is not None:
                rows[event.request] = fold(rows.get(event.request), event)
        leases = {lease.request: lease for lease in await self.store.leases(open_only=False)}
        assert leases.keys() == rows.keys() == self.model.requests.keys()
        for id, row in rows.items():
            assert row is not None
            lease, model = leases[id], self.model.requests[id]
            folded = to_lease(row)
            assert (folded.state, folded.epoch, folded.worker, folded.stream) == (
                lease.state,
                lease.epoch,
                lease.worker,
                lease.stream,
            )
            assert (lease.state, lease.epoch, lease.worker) == (
                model.state,
                model.epoch,
                model.worker,
            )
            if lease.worker is not None:
                assert lease.until == model.until

    def teardown(self) -> None:
        async def close() -> None:
            for follower in self.followers:
                await follower.drop()
            await self.stack.aclose()

        self.run(close())
        self.runner.close()
        shutil.rmtree(self.directory)


def machine(kind: str, examples: int) -> Any:
    case = type(f"{kind.title()}Machine", (LogMachine,), {"kind": kind}).TestCase
    case.settings = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return case


TestMemory = machine("memory", 60)
TestSqlite = machine("sqlite", 40)
TestPostgres = machine("postgres", 12)

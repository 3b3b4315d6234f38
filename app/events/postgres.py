"""The log in Postgres, written by any number of processes.

Each process commits in groups: one call of the function ``append_batch``, one round trip, under one
advisory lock, decides and writes everything that waits. Order of ``seq`` = order of commit = order
of visibility, so a reader's cursor is one integer and no gap ever has to be explained. A batch
whose answer was lost with the connection is sent again under its number and takes effect once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import asyncpg

from app.errors import StartupError
from app.events import pg, postgres_migrate
from app.events import postgres_sql as sql
from app.events.clock import steady
from app.events.envelope import Event
from app.events.feed import Feed
from app.events.ids import uuid7
from app.events.logstore import LogStore
from app.events.migration import migrations
from app.events.ops import Claim, Expire, Heartbeat, Op
from app.events.postgres_archive import archive_lock
from app.events.postgres_call import Call, Guarded, Names
from app.events.postgres_exclusive import write_planned
from app.events.postgres_queue import claims, expiries
from app.events.postgres_reading import PostgresReading
from app.events.postgres_tail import Listener, Notifier, Tail, channel_of, is_same
from app.events.postgres_writing import WritingConnection
from app.events.queue import Request
from app.events.store import (
    Append,
    Fence,
    Outcome,
    StoreError,
)
from app.events.writer import GroupCommit

__all__ = ["PostgresStore"]

log = logging.getLogger(__name__)

T = TypeVar("T")

POOL = 8
"""Most connections for reading; a node has two more, one that writes and one that listens."""

MOST_EVENTS = 4_000
"""Most events in one call."""

CALL_SECONDS = 60.0
"""After so long without an answer the connection counts as lost."""

HOUR = 3600 * 10**9
WEEK = 7 * 24 * HOUR
MAX_VERSIONS = 65_536


class PostgresStore(LogStore):
    """The event store in Postgres. Open one with `PostgresStore.open`."""

    def __init__(
        self,
        dsn: str,
        pool: Any,
        *,
        synchronous: str,
        read_only: bool,
        feed: Feed | None,
        clock: Callable[[], int] | None,
    ) -> None:
        self._names = Names()
        self._reading: PostgresReading = PostgresReading(pool, self._names)
        writer = GroupCommit(self._commit, idle=self._tidy)
        super().__init__(self._reading, feed, writer, writable=not read_only)
        self._dsn = dsn
        settings = {"synchronous_commit": "on" if synchronous == "full" else "off"}
        self._connection = WritingConnection(dsn, settings, self._check_log)
        self._clock = clock or time.time_ns
        self._leases = clock  # None: leases run on the server's clock
        self._tail = Tail(self._reading, self._feed, self._note_versions)
        self._versions: dict[str, int] = {}
        self._id, self._number = uuid7(), 0
        self._last_time = self._pruned = 0
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------------- opening and closing

    @classmethod
    async def open(
        cls,
        dsn: str,
        *,
        synchronous: str = "full",
        read_only: bool = False,
        feed: Feed | None = None,
        clock: Callable[[], int] | None = None,
        pool: int = POOL,
    ) -> PostgresStore:
        """Open a log, creating its tables unless ``read_only``.

        Args:
            dsn: ``postgresql://...``; what it leaves out comes from the usual ``PG*`` variables.
            synchronous: ``full``: a crash of the server loses nothing acknowledged; ``normal``: it
                may lose the commits of its last moments (``synchronous_commit = off``).
            read_only: Read and follow only.
            feed: Memory for recent events.
            clock: Gives nanoseconds since the epoch, also for leases; None: events get this
                machine's time, leases run on the server's.
            pool: Most connections for reading.

        Raises:
            InputError: The URL is malformed.
            StartupError: It cannot be opened; the message says why.

        """
        try:
            incarnation, schema = await _prepare(dsn, read_only=read_only)
            settings = pg.SETTINGS | {"enable_seqscan": "off", "enable_bitmapscan": "off"}
            connections = await asyncpg.create_pool(
                dsn,
                min_size=0,
                max_size=pool,
                server_settings=settings,
                timeout=pg.CONNECT_SECONDS,
                command_timeout=pg.ANSWER_SECONDS,
                init=pg.watch,
                reset=_leave_as_it_is,
            )
        except Exception as error:
            raise pg.startup_error(dsn, error) from error
        store = cls(
            dsn,
            connections,
            synchronous=synchronous,
            read_only=read_only,
            feed=feed,
            clock=clock,
        )
        store.incarnation = incarnation
        try:
            await store._start(channel_of(schema))
        except BaseException:
            await store._connection.aclose()
            await store._reading.aclose()
            raise
        return store

    async def _start(self, channel: str) -> None:
        if self._writable:
            await self._connection.open()
        await self._tail.begin()
        connect = partial(pg.connect, self._dsn, pg.ANSWER_SECONDS)
        listener = Listener(connect, channel, self._tail.ring)
        self._notifier = Notifier(self._reading, channel)
        runs = [self._tail.run(), listener.run(), self._notifier.run()]
        self._tasks = [asyncio.create_task(run, name="everlog-tail") for run in runs]
        if self._writable:
            self._writer.start()

    async def aclose(self) -> None:
        """Finish what was accepted, then close. Waiters and followers get `StoreClosed`."""
        if self._closed:
            return
        self._connection.give_up_soon()
        if self._writable:
            await self._writer.aclose()
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._feed.wake(None)
        await self._connection.aclose()
        await self._reading.aclose()

    # ------------------------------------------------------------------------------ writing

    async def adopt(self, incarnation: str | None = None) -> str:
        """See `LogStore.adopt`."""
        self._refuse_unless_writable()
        new, statement = incarnation or uuid7(), sql.ADOPT_IF_EMPTY if incarnation else sql.ADOPT
        if await self._connection.run(lambda conn: conn.fetchval(statement, new)) is None:
            raise StoreError("the log has events, and its own incarnation")
        self.incarnation = new
        return new

    async def beat(self, *, node: str, lease: float) -> frozenset[str]:
        """See `EventStore.beat`."""
        now = self._lease_clock()

        async def work(conn: Any) -> frozenset[str]:
            await conn.execute(sql.BEAT, node, int(lease * 1e9), now)
            return frozenset(row[0] for row in await conn.fetch(sql.SELECT_NODES, now))

        return await self._reading.run(work, patience=0)  # the next beat comes soon; say why not

    async def leave(self, *, node: str) -> None:
        """See `EventStore.leave`."""
        await self._reading.run(lambda conn: conn.execute(sql.LEAVE, node), patience=0)

    @contextlib.asynccontextmanager
    async def archiving(self) -> AsyncIterator[None]:
        """See `LogStore.archiving`; held against every other process too."""
        async with super().archiving(), archive_lock(self._dsn):
            yield

    # ------------------------------------------------------------------- the writer's own work

    async def _commit(self, ops: list[Op]) -> list[object]:
        """Write operations in order; neighbouring appends together."""
        results: list[object] = []
        run: list[Append | Guarded] = []
        size = 0
        for op in ops:
            if isinstance(op, Append):
                if run and size + len(op.events) > MOST_EVENTS:
                    results += await self._settle(run)
                    run, size = [], 0
                run.append(op)
                size += len(op.events)
                continue
            if run:
                results += await self._settle(run)
                run, size = [], 0
            results.append(await self._other(op))
        if run:
            results += await self._settle(run)
        return results

    async def _settle(self, appends: list[Append | Guarded]) -> list[object]:
        """Outcome or error of each append; one that cannot be stored does not harm the others."""
        try:
            return list(await self._call(appends))
        except ValueError as error:
            if len(appends) == 1:
                return [error]
            return [result for append in appends for result in await self._settle([append])]
        except StoreError as error:
            return [error] * len(appends)

    async def _other(self, op: Op) -> object:
        try:
            if isinstance(op, Claim):
                return await claims(op, self._peek, self._call)
            if isinstance(op, Expire):
                return await expiries(op, self._lease_clock(), self._peek, self._call)
            if isinstance(op, Heartbeat):
                return await self._heartbeat(op)
            return await self._exclusive(op)
        except (StoreError, ValueError) as error:  # its neighbours are not to be written twice
            return error

    async def _call(self, appends: Sequence[Append | Guarded]) -> list[Outcome]:
        """Call ``append_batch`` until it answers; under one number, so it takes effect once."""
        self._last_time = now = steady(self._clock(), self._last_time)
        self._number += 1
        call, number = Call(appends, self._names, now), self._number

        async def work(conn: Any) -> str:
            clock = self._lease_clock()
            arguments = call.arguments(self._id, number, clock, self._versions)
            try:
                answer = await conn.fetchval(sql.APPEND_BATCH, *arguments, timeout=CALL_SECONDS)
            except asyncpg.UniqueViolationError:  # another node was faster in one of the streams
                self._versions = {}
                arguments = call.arguments(self._id, number, clock, {})
                answer = await conn.fetchval(sql.APPEND_BATCH, *arguments, timeout=CALL_SECONDS)
            return str(answer)

        outcomes, events = call.outcomes(await self._connection.run(work))
        if events:
            if len(self._versions) >= MAX_VERSIONS:
                self._versions = {}
            self._versions.update((event.stream, event.version) for event in events)
            self._tail.publish(events)
            self._notifier.ring(events[-1].seq)
        return outcomes

    async def _heartbeat(self, beat: Heartbeat) -> list[Fence]:
        async def work(conn: Any) -> list[Any]:
            async with conn.transaction():
                await conn.execute("SELECT log_lock()")  # or it could deadlock with an append
                rows: list[Any] = await conn.fetch(
                    sql.HEARTBEAT, beat.worker, int(beat.lease * 1e9), self._lease_clock()
                )
                return rows

        rows = await self._connection.run(work)
        return [Fence(id, epoch) for id, epoch, _ in sorted(rows, key=lambda row: row[2])]

    async def _peek(self, statement: str, *args: Any) -> list[Request]:
        rows = await self._connection.run(lambda conn: conn.fetch(statement, *args))
        return [Request(*row) for row in rows]

    async def _exclusive(self, op: Op) -> object:
        """Plan an operation here, with the append lock held: for the rare ones."""
        batch = await self._connection.run(
            lambda conn: write_planned(conn, op, self._clock()), once=True
        )
        if batch.erased:  # whoever awaits this must not read what the ring still holds
            self._feed.reset(self._tail.position + 1)
        self._tail.ring()
        self._notifier.ring(self._tail.position)
        return batch.results[0]

    async def _check_log(self, conn: Any) -> None:
        """Refuse a database that no longer holds what this process has seen.

        Raises:
            StoreError: It does not.

        """
        self._versions = {}  # after a failover the log may end earlier than we knew
        seen, last = self._tail.position, self._tail.last
        incarnation = await conn.fetchval(sql.SELECT_LOG_ROW)
        head = await conn.fetchval(sql.SELECT_HEAD)
        there = await conn.fetchrow(sql.SELECT_HEADER, seen)  # none also when it is archived
        same = there is None or is_same(last, there)
        if incarnation != self.incarnation or head < seen or not same:
            raise StoreError(
                f"the database holds another log now, or an older one: it ends at {head}, and "
                f"event {seen} has been seen" + ("" if same else " with other content"),
                hint="after a restore: everlog migrate --new-incarnation; then restart",
            )

    def _lease_clock(self) -> int | None:
        return None if self._leases is None else self._leases()

    async def _tidy(self) -> None:
        now = time.time_ns()
        if now - self._pruned < HOUR:
            return
        self._pruned = now
        for statement in (sql.PRUNE_COMMANDS, sql.PRUNE_BATCHES, sql.PRUNE_NODES):
            await self._reading.fetchval(statement, WEEK)

    # ------------------------------------------------------------------------------ reading

    async def head(self) -> int:
        """See `EventStore.head`."""
        self._refuse_if_closed()
        return await self._reading.head()

    async def stream_version(self, stream: str) -> int:
        """See `EventStore.stream_version`."""
        self._refuse_if_closed()
        return await self._reading.version(stream)

    async def _position(self, stream: str | None) -> int:
        self._refuse_if_closed()
        if stream is None:
            return self._tail.position
        known = self._versions.get(stream)
        if known is None or known < 0:
            if len(self._versions) >= MAX_VERSIONS:
                self._versions = {}
            versions = self._versions
            versions.setdefault(stream, -1)  # what is published before the answer counts
            known = max(await self._reading.version(stream), versions.get(stream, -1))
            if versions is self._versions and stream in versions:
                versions[stream] = known
        return known

    async def _end(self, stream: str | None, until: int | None) -> int:
        if until is not None:
            self._refuse_if_closed()
            return until
        return await self.head() if stream is None else await self.stream_version(stream)

    def _note_versions(self, events: Sequence[Event]) -> None:
        """Commits are about to be published; none: anything may have been."""
        if not events:
            self._versions = {}
        versions = self._versions
        for event in events:
            if event.version > versions.get(event.stream, event.version):
                versions[event.stream] = event.version


async def _leave_as_it_is(conn: Any) -> None:
    """Readers change nothing of their session, so nothing needs a round trip to be reset."""


async def _prepare(dsn: str, *, read_only: bool) -> tuple[str, str]:
    """Migrate, and return incarnation and schema.

    Raises:
        StartupError: The database is too old, too new, or lacks something.

    """
    conn = await pg.connect(dsn)
    try:
        postgres_migrate.refuse_old_server(conn)
        wanted = migrations("postgres")
        if read_only:
            lacking = await postgres_migrate.outstanding(conn, wanted)
            if lacking:
                raise StartupError(
                    f"the database lacks migration {lacking[0]}", hint="run: everlog migrate"
                )
        else:
            await postgres_migrate.apply(conn, wanted)
            await conn.execute(sql.INSERT_LOG, uuid7())
        incarnation = await conn.fetchval(sql.SELECT_LOG_ROW)
        if incarnation is None:
            raise StartupError("the database has no log", hint="run: everlog migrate")
        return str(incarnation), str(await conn.fetchval("SELECT current_schema()"))
    finally:
        await pg.close(conn)

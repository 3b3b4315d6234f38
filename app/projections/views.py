"""The read side: conversations, timelines and requests, from tables kept up in the background."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import anyio
import anyio.to_thread
import msgspec

from app.errors import InputError
from app.events.envelope import thread_stream
from app.events.store import EventStore
from app.projections import ledger, metrics, queries
from app.projections.database import Connection, Moved, Trouble, Where, connect
from app.projections.history import History
from app.projections.metrics import Count, Metrics, Spread
from app.projections.projection import Projection
from app.projections.queries import Prefixes, RunRow, Span, ThreadRow
from app.projections.rebuild import Progress, Rebuilt, rebuild
from app.projections.requests import RequestRow, Requests
from app.projections.runner import Runner
from app.projections.threads import in_thread
from app.projections.timeline import Timeline

__all__ = [
    "PROJECTIONS",
    "Checkpoint",
    "Metered",
    "RequestRow",
    "RunRow",
    "Span",
    "ThreadRow",
    "Views",
    "named",
]

T = TypeVar("T")
READERS = 3
SLOW_SECONDS = 2.0
"""When a server took longer than this not to answer, reads do not even try for as long."""

TRIES = 5
"""Reads that met a rebuild's swap are done again."""

#: Projections by name, in the order they are shown.
PROJECTIONS: dict[str, type[Projection]] = {
    p.name: p for p in (History, Timeline, Requests, Metrics)
}


class Metered(NamedTuple):
    """What is counted of a log; ``flights`` are the open requests: model, running, how many."""

    counts: list[Count]
    spreads: list[Spread]
    flights: list[tuple[str, bool, int]]


class Checkpoint(msgspec.Struct, frozen=True):
    """Where a projection stands: ``behind`` events before the head of the log.

    ``error`` says why it stands still, or why rows cannot be written; None: all is well.
    """

    name: str
    version: int
    generation: int
    seq: int
    behind: int
    error: str | None


def named(names: Sequence[str] | None) -> list[Projection]:
    """Return projections by name; all of them for None.

    Raises:
        InputError: There is no such projection (field ``projection``).

    """
    for name in names or ():
        if name not in PROJECTIONS:
            known = ", ".join(PROJECTIONS)
            raise InputError(f"no projection {name!r}; there are {known}", field="projection")
    return [PROJECTIONS[name]() for name in (names or PROJECTIONS)]


class Views:
    """Read models of a log. Open with `Views.open`; every read sees one consistent moment."""

    def __init__(self, store: EventStore, where: Where, runner: Runner) -> None:
        self._store = store
        self._where = where
        self._runner = runner
        self._idle: list[Connection] = []
        self._limit = anyio.CapacityLimiter(READERS)
        self._away = Trouble(""), 0.0
        self._closed = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, store: EventStore, where: Where | None) -> AsyncIterator[Views]:
        """Open the read models and keep them up for the time of a ``with`` block.

        Rows of another log, of another version of the code, or from after the head of a restored
        log are dropped, and folded again in the background.

        Args:
            store: The log; may be open for reading only.
            where: File of the read models, or URL of a Postgres database: they are in its current
                schema, and one process keeps them up for all; None keeps them only as long as the
                block.

        Raises:
            StartupError: The file or database cannot be opened, or is something else.

        """
        with contextlib.ExitStack() as stack:
            if where is None:
                folder = tempfile.TemporaryDirectory(prefix="everlog-views-")
                where = Path(stack.enter_context(folder)) / "views"
            runner = await Runner.open(store, where, named(None))
            views = cls(store, where, runner)
            task = asyncio.create_task(runner.run(), name="everlog-projections")
            try:
                yield views
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                await in_thread(views._close)

    def _close(self) -> None:
        self._closed = True
        self._drop_idle()
        self._runner.close()

    def _drop_idle(self) -> None:
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    async def _read(self, query: Callable[[Connection, Prefixes], T]) -> T:
        """Run a query in a thread, in one read transaction; one hop, so never left half done.

        Raises:
            Trouble: The database is away, or too slow.

        """
        return await anyio.to_thread.run_sync(self._read_now, query, limiter=self._limit)

    def _read_now(self, query: Callable[[Connection, Prefixes], T]) -> T:
        for attempt in range(TRIES):
            connection, known = self._take()
            try:
                with connection.reading():
                    return query(connection, queries.prefixes(connection))
            except Moved:
                if attempt == TRIES - 1:
                    raise
            except Trouble:
                if connection.usable or not known:
                    raise
                self._drop_idle()  # the others were lost with it: once more with a new one
            finally:
                self._give_back(connection)
        raise AssertionError("unreachable")

    def _take(self) -> tuple[Connection, bool]:
        """Return a connection, and whether it has served before."""
        try:
            return self._idle.pop(), True
        except IndexError:
            pass
        began, (trouble, until) = time.monotonic(), self._away
        if began < until:
            raise Trouble(trouble.message, hint=trouble.hint)
        try:
            return connect(self._where, "read"), False
        except Trouble as error:
            now = time.monotonic()
            if now - began > SLOW_SECONDS:
                self._away = error, now + SLOW_SECONDS
            raise

    def _give_back(self, connection: Connection) -> None:
        # If closed, its caller was cancelled, and the block has ended meanwhile.
        if self._closed or not connection.usable:
            connection.close()
        else:
            self._idle.append(connection)

    # ------------------------------------------------------------------------------ reading

    async def threads(
        self,
        *,
        owner: str | None,
        limit: int = 50,
        before: int | None = None,
        search: str | None = None,
    ) -> list[ThreadRow]:
        """Return conversations, the one with the latest message first; deleted ones never.

        Args:
            owner: User whose conversations; None: everybody's.
            limit: At most so many.
            before: Only those whose ``seq`` is smaller: that of the last row of the page before.
            search: Only those with a title or a message that holds all these words (or their
                beginnings), in any order.

        """
        return await self._read(
            lambda c, p: queries.threads(
                c, p, owner=owner, limit=limit, before=before, search=search
            )
        )

    async def thread(self, thread: str) -> ThreadRow | None:
        """Return one conversation; None if there is none, or it was deleted."""
        return await self._read(lambda c, p: queries.thread(c, p, thread))

    async def timeline(self, thread: str) -> list[Span]:
        """Return the spans of a conversation in the order they began."""
        return await self._read(lambda c, p: queries.timeline(c, p, thread_stream(thread)))

    async def requests(self, *, state: str | None = None, limit: int = 100) -> list[RequestRow]:
        """Return engine requests, the newest first; only those in ``state`` if given."""
        return await self._read(lambda c, p: queries.requests(c, p, state=state, limit=limit))

    async def metrics(self) -> Metered:
        """Return the counters and histograms of the log as they stand."""

        def read(c: Connection, using: Prefixes) -> Metered:
            p = using["metrics"]
            return Metered(metrics.counts(c, p), metrics.spreads(c, p), metrics.flights(c, p))

        return await self._read(read)

    async def unfinished_runs(self) -> list[RunRow]:
        """Return the runs that have not ended, oldest first."""
        return await self._read(queries.unfinished_runs)

    async def waiting_threads(self, *, since: int) -> list[str]:
        """Return the conversations that had runs and whose last user message began none.

        Args:
            since: Only those with events at or after this time, in ns since the epoch.

        """
        return await self._read(lambda c, p: queries.waiting_threads(c, p, since=since))

    # --------------------------------------------------------------------------- operation

    @property
    def leading(self) -> bool:
        """Whether this process folds: one of all that share a database; always, with a file."""
        return self._runner.leading

    async def reached(self, seq: int, projection: str | None = None) -> None:
        """Return once the read models hold everything up to ``seq``.

        Args:
            seq: Position in the log.
            projection: The one that matters; None: all but those that stand still on an error.

        Raises:
            EverlogError: The projection, or all of them, stand still on an error.

        """
        await self._runner.reached(seq, projection)

    @property
    def trouble(self) -> str | None:
        """Why the read models cannot be kept up just now; None if they can."""
        return self._runner.trouble

    async def checkpoints(self) -> list[Checkpoint]:
        """Say where each projection stands."""
        positions = await self._read(lambda connection, _: ledger.positions(connection))
        head, runner = await self._store.head(), self._runner
        return [
            Checkpoint(
                name=name,
                version=position.version,
                generation=position.generation,
                seq=position.seq,
                behind=max(head - position.seq, 0),
                error=runner.standings[name].error or position.error or runner.trouble,
            )
            for name, position in positions.items()
            if name in PROJECTIONS
        ]

    async def rebuild(
        self, names: Sequence[str] | None = None, *, progress: Progress | None = None
    ) -> Rebuilt:
        """Rebuild projections while they go on serving; see `app.projections.rebuild`.

        Raises:
            InputError: There is no such projection.
            EverlogError: Another rebuild is at work, or an event is newer than this code.

        """
        done = await rebuild(self._store, self._where, named(names), progress=progress)
        await self._runner.notice(done.generations)
        return done

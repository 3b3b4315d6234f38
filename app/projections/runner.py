"""The runner: keeps the projections at the head of the log, in the background.

One pass over the log serves all of them: events are fetched and decoded once. Folding happens in
a worker thread, a batch at a time, rows and checkpoints in one transaction. While nobody waits
for it the runner works at most half of the time, so that streaming keeps the processor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Sequence

from app.errors import EverlogError
from app.events.store import EventStore, StoreClosed
from app.projections import ledger
from app.projections.folding import Folder, Standing
from app.projections.projection import Projection
from app.projections.threads import in_thread

__all__ = ["Runner"]

log = logging.getLogger(__name__)

BATCH = 1000
"""Most events of a transaction while keeping up."""

BULK = 4000
"""Most events of a transaction while catching up from far behind."""

POLL_SECONDS = 1.0
"""How often a quiet log is looked away from, to see whether another process rebuilt something."""

PAUSE_SECONDS = 0.1
"""Shortest pause after a batch nobody waits for: while tokens stream, a fold and a transaction for
each commit would cost a quarter of the server's time. Readers that wait cut it short."""

RETRY_SECONDS = (0.1, 5.0)
"""First and longest wait after the file could not be written."""


class Runner:
    """Keeps projections up. Make one with `start`, then keep `run` running.

    Attributes:
        standings: Where each projection stands, by name.
        trouble: Why the last batch could not be written; None if it was.

    """

    def __init__(
        self, store: EventStore, connection: sqlite3.Connection, projections: Sequence[Projection]
    ) -> None:
        self._store = store
        self._folder = Folder(connection, projections)
        self._connection = connection
        self._moved = asyncio.Event()
        self._wanted = asyncio.Event()
        self._waiting = 0
        self._idling: asyncio.Timeout | None = None
        self.standings: dict[str, Standing] = {}
        self.trouble: str | None = None

    async def start(self) -> None:
        """Make the projections ready; those whose rows cannot be used start over."""
        seen = await in_thread(self._folder.seen)
        head = await self._store.head()
        incarnation = self._store.incarnation
        self.standings = await in_thread(
            lambda: self._folder.start(seen, incarnation=incarnation, head=head)
        )

    async def run(self) -> None:
        """Fold until cancelled, or until the store closes. No error ends it silently."""
        delay, longest = RETRY_SECONDS
        while True:
            try:
                await self._step()
                self.trouble, delay = None, RETRY_SECONDS[0]
            except StoreClosed:
                return
            except Exception as error:
                self.trouble = f"{type(error).__name__}: {error}"
                log.exception("the read models cannot be kept up; trying again in %.1f s", delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, longest)

    async def _step(self) -> None:
        running = [s.seq for s in self.standings.values() if s.error is None]
        after = min(running, default=-1)
        if not await self._news(after):
            self._move(await in_thread(self._folder.refresh))
            return
        events = await self._store.fetch(after=after, limit=BATCH)
        if len(events) == BATCH:
            events += await self._store.fetch(after=events[-1].seq, limit=BULK - BATCH)
        began = time.perf_counter()
        self._move(await in_thread(self._folder.fold, after, events))
        await self._pause(time.perf_counter() - began)

    async def _news(self, after: int) -> bool:
        """Wait for an event past ``after`` (-1: none counts); False: look at the file instead."""
        try:
            async with asyncio.timeout(POLL_SECONDS) as self._idling:
                if after < 0:
                    await asyncio.Event().wait()
                await self._store.wait(after=after)
        except TimeoutError:
            return False
        finally:
            self._idling = None
        return True

    async def notice(self, generations: dict[str, int]) -> None:
        """Take generations over that a rebuild in this process has let serve."""
        with contextlib.suppress(TimeoutError):  # the runner has ended, or has trouble
            async with asyncio.timeout(2 * POLL_SECONDS):
                while any(self.standings[n].generation < g for n, g in generations.items()):
                    if self._idling is not None:
                        self._idling.reschedule(asyncio.get_running_loop().time())
                    await self._moved.wait()

    async def _pause(self, worked: float) -> None:
        if self._waiting:
            return
        self._wanted.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(worked, PAUSE_SECONDS)):
                await self._wanted.wait()

    def _move(self, standings: dict[str, Standing]) -> None:
        if standings != self.standings:
            self.standings = standings
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()

    async def reached(self, seq: int, name: str | None = None) -> None:
        """Return once the rows hold everything up to ``seq``, so that a reader sees its writes.

        Args:
            seq: Position in the log.
            name: The projection that matters; None: all but those that stand still on an error.

        Raises:
            EverlogError: The projection, or all of them, stand still on an error.

        """
        self._waiting += 1
        self._wanted.set()
        try:
            while not self._has_reached(seq, name):
                await self._moved.wait()
        finally:
            self._waiting -= 1

    def _has_reached(self, seq: int, name: str | None) -> bool:
        standings = self.standings if name is None else {name: self.standings[name]}
        running = [s.seq for s in standings.values() if s.error is None]
        if not running:
            broken, standing = next(iter(standings.items()))
            raise EverlogError(
                f"the projection {broken} stands still: {standing.error}",
                hint=f"Rebuild it: everlog rebuild {broken}",
            )
        return min(running) >= seq

    def close(self) -> None:
        """Close the writing connection. Call when `run` has ended."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA optimize")
        self._connection.close()

    @classmethod
    async def open(cls, store: EventStore, path: str, projections: Sequence[Projection]) -> Runner:
        """Open the file and make the projections ready.

        Raises:
            StartupError: The file cannot be opened, or is something else.

        """
        connection = await in_thread(ledger.connect, path)
        runner = cls(store, connection, projections)
        try:
            await runner.start()
        except BaseException:
            connection.close()
            raise
        return runner

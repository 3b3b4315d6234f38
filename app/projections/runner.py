"""The runner: keeps the projections at the head of the log, in the background.

One pass over the log serves all of them: events are fetched and decoded once. Folding happens in
a worker thread, a batch at a time, rows and checkpoints in one transaction. While nobody waits
for it the runner works at most half of the time, so that streaming keeps the processor.

In Postgres one of all processes leads: it folds, the others look how far it has come, and take
its place when it is gone. The lead is bound to the connection that writes, so whoever loses it
learns so before the next commit. In SQLite everybody folds what is not folded yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence

from app.errors import EverlogError, StartupError
from app.events.store import EventStore, StoreClosed
from app.projections import ledger
from app.projections.database import Connection, Trouble, Where
from app.projections.folding import Folder, Standing
from app.projections.projection import Projection
from app.projections.threads import in_thread

__all__ = ["Runner"]

log = logging.getLogger(__name__)

BATCH = 1000
"""Most events of a transaction while keeping up."""

BULK = 4000
"""Most events of a transaction while catching up from far behind."""

BULK_BYTES = 4 << 20
"""Payloads of the first of them past which there is enough to do."""

POLL_SECONDS = 1.0
"""How often a quiet log is looked away from, to see whether another process rebuilt something; and
how often one that does not lead looks whether it may."""

GLANCE_SECONDS = 0.02
"""The same for one that does not lead while readers wait."""

PAUSE_SECONDS = 0.1
"""Shortest pause after a batch nobody waits for: while tokens stream, a fold and a transaction for
each commit would cost a quarter of the server's time. Readers that wait cut it short."""

RETRY_SECONDS = (0.1, 2.0)
"""First and longest wait after the database could not be written."""


class Runner:
    """Keeps projections up. Make one with `start`, then keep `run` running.

    Attributes:
        standings: Where each projection stands, by name.
        trouble: Why the last batch could not be written; None if it was.
        leading: Whether this one folds.

    """

    def __init__(self, store: EventStore, where: Where, projections: Sequence[Projection]) -> None:
        self._store = store
        self._where = where
        self._projections = projections
        self._connection: Connection | None = None
        self._folder: Folder
        self._moved = asyncio.Event()
        self._wanted = asyncio.Event()
        self._waiting = 0
        self._idling: asyncio.Timeout | None = None
        self.standings: dict[str, Standing] = {}
        self.trouble: str | None = None
        self.leading = False

    async def start(self) -> None:
        """Connect and make the projections ready; those whose rows cannot be used start over."""
        await in_thread(self._connect)
        seen = await in_thread(self._folder.seen)
        head = await self._store.head()
        incarnation = self._store.incarnation
        self._move(
            await in_thread(lambda: self._folder.start(seen, incarnation=incarnation, head=head))
        )

    def _connect(self) -> None:
        self.close()
        self._connection = ledger.open_ledger(self._where)
        self._folder = Folder(self._connection, self._projections)

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
                expected = isinstance(error, EverlogError)
                self.trouble = str(error) if expected else f"{type(error).__name__}: {error}"
                log.warning(
                    "the read models cannot be kept up, trying again in %.1f s: %s",
                    delay,
                    error,
                    exc_info=not expected,
                )
                await asyncio.sleep(delay)
                delay = min(2 * delay, longest)

    async def _step(self) -> None:
        if self._connection is None or not self._connection.usable:
            await self.start()
        if not self.leading and not await self._lead():
            await self._stand_by()
            return
        running = [s.seq for s in self.standings.values() if s.error is None]
        after = min(running, default=-1)
        if not await self._news(after):
            self._move(await in_thread(self._folder.refresh))
            return
        events = await self._store.fetch(after=after, limit=BATCH)
        if len(events) == BATCH and sum(len(event.data) for event in events) < BULK_BYTES:
            events += await self._store.fetch(after=events[-1].seq, limit=BULK - BATCH)
        began = time.perf_counter()
        self._move(await in_thread(self._folder.fold, after, events))
        await self._pause(time.perf_counter() - began)

    async def _lead(self) -> bool:
        assert self._connection is not None
        name = self._folder.set_name
        self.leading = await in_thread(self._connection.lead, name) is not False
        if self.leading:
            log.debug("this process keeps the read models up")
        return self.leading

    async def _stand_by(self) -> None:
        """Look how far the one that leads has come, then wait a little."""
        self._move(await in_thread(self._folder.refresh))
        self._wanted.clear()
        seconds = GLANCE_SECONDS if self._waiting else POLL_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wanted.wait()

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
        self._waiting += 1
        self._wanted.set()
        try:
            async with asyncio.timeout(2 * POLL_SECONDS):
                while any(self.standings[n].generation < g for n, g in generations.items()):
                    if self._idling is not None:
                        self._idling.reschedule(asyncio.get_running_loop().time())
                    await self._moved.wait()
        except TimeoutError:
            pass  # the runner has ended, or has trouble
        finally:
            self._waiting -= 1

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
        """Close the writing connection. Call in a thread, when `run` has ended."""
        self.leading = False
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @classmethod
    async def open(
        cls, store: EventStore, where: Where, projections: Sequence[Projection]
    ) -> Runner:
        """Open the file or database and make the projections ready.

        Raises:
            StartupError: It cannot be opened, or is something else.

        """
        runner = cls(store, where, projections)
        try:
            await runner.start()
        except Trouble as error:
            await in_thread(runner.close)
            raise StartupError(error.message, hint=error.hint) from error
        except BaseException:
            await in_thread(runner.close)
            raise
        return runner

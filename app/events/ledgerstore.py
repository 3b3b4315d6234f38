"""`LedgerStore`: a log with one writing process, which plans its batches in memory.

Shared by memory and SQLite: group commit, the ledger, the feed. A backend only looks up, writes one
batch atomically, and selects.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from app.events.absent import Absent
from app.events.backend import Backend
from app.events.feed import Feed
from app.events.ids import uuid7
from app.events.ledger import Ledger
from app.events.logstore import LogStore
from app.events.ops import Load, Op
from app.events.store import (
    StoreError,
)
from app.events.writer import GroupCommit

__all__ = ["LedgerStore"]

log = logging.getLogger(__name__)

WEEK = 7 * 24 * 3600 * 10**9
"""How long commands are remembered, in nanoseconds."""


class LedgerStore(LogStore):
    """A log over a backend that keeps rows.

    Attributes:
        exclusive: No other process can write: who does not beat here does not beat at all.

    """

    exclusive = True

    def __init__(
        self,
        backend: Backend,
        *,
        feed: Feed | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        writer = GroupCommit(self._commit, between=backend.maintain, idle=self._tidy)
        super().__init__(backend, feed, writer, writable=backend.writable)
        self._backend = backend
        self._clock = clock
        self._ledger = Ledger()
        self._absent = Absent()
        self._poller: asyncio.Task[None] | None = None
        self._poll_bell = asyncio.Event()
        self._stale = False
        self._nodes: dict[str, int] = {}  # who beats: until when (ns)
        self.incarnation = backend.incarnation

    async def start(self) -> None:
        """Load the end of the log and start the background task."""
        state = await self._backend.state()
        self._ledger.restore(state)
        self._feed.reset(state.head + 1)
        if self._backend.writable:
            self._writer.start()
        else:
            self._poller = asyncio.create_task(self._poll(), name="everlog-poller")

    async def aclose(self) -> None:
        """Finish what was accepted, then close. Waiters and followers get `StoreClosed`."""
        if self._closed:
            return
        await self._writer.aclose()
        self._closed = True
        self._feed.wake(None)
        if self._poller is not None:
            self._poll_bell.set()
            await asyncio.shield(self._poller)
        await self._backend.aclose()

    # ------------------------------------------------------------------------------ writing

    async def adopt(self, incarnation: str | None = None) -> str:
        """See `LogStore.adopt`."""
        self._refuse_unless_writable()
        new = incarnation or uuid7()
        if not await self._backend.adopt(new, empty=incarnation is not None):
            raise StoreError("the log has events, and its own incarnation")
        self.incarnation = new
        return new

    async def scrub(self) -> bool:
        """See `LogStore.scrub`."""
        self._refuse_unless_writable()
        return await self._backend.scrub()

    async def beat(self, *, node: str, lease: float) -> frozenset[str]:
        """See `EventStore.beat`. One process writes: all who beat are parts of it."""
        self._refuse_unless_writable()
        now = self._clock()
        self._nodes[node] = now + int(lease * 1e9)
        self._nodes = {name: until for name, until in self._nodes.items() if until > now}
        return frozenset(self._nodes)

    async def leave(self, *, node: str) -> None:
        """See `EventStore.leave`."""
        self._nodes.pop(node, None)

    async def _commit(self, ops: list[Op]) -> list[object]:
        ledger = self._ledger
        if self._stale:
            await self._recover()
        missing = ledger.missing(ops)
        if missing:
            ledger.learn(missing, await self._backend.lookup(missing))
        self._stale = True  # until committed, the ledger is ahead of the database
        batch = ledger.plan(ops, self._clock())
        if not batch.empty:
            try:
                await self._backend.write(batch)
            except StoreError:
                with suppress(StoreError):  # else the next batch tries again
                    await self._recover()
                raise
        ledger.commit(batch)
        self._stale = False
        for event in batch.events:
            if event.version == 1:
                self._absent.began(event.stream)
        if any(isinstance(op, Load) for op in ops):  # nobody is at the tail of what is old
            self._feed.reset(ledger.committed + 1)
            self._feed.wake(None)
        else:
            self._feed.publish(batch.events)
        return batch.results

    async def _tidy(self) -> None:
        await self._backend.tidy(self._clock() - WEEK)

    async def _recover(self) -> None:
        """Take the end of the log from the database: the cache ran ahead of it."""
        state = await self._backend.state()
        before = self._ledger.committed
        self._ledger.restore(state)
        self._stale = False
        if state.head != before:  # the commit was reported failed, yet it is there
            self._absent.clear()
            self._feed.reset(state.head + 1)
            self._feed.wake(None)

    # ------------------------------------------------------------------------------ reading

    async def head(self) -> int:
        """See `EventStore.head`."""
        self._refuse_if_closed()
        return self._ledger.committed if self._backend.writable else await self._backend.head()

    async def stream_version(self, stream: str) -> int:
        """See `EventStore.stream_version`."""
        self._refuse_if_closed()
        if not self._backend.writable:
            return await self._backend.version(stream)
        cached = self._ledger.version(stream)
        if cached is None:
            if stream in self._absent:
                return 0
            mark = self._absent.asking(stream)
            stored = await self._backend.version(stream)
            self._absent.answered(stream, mark, exists=stored > 0)
            # The stream may have got a commit meanwhile that is stored, but not published yet:
            # then the ledger knows the stream now, and what may be seen of it.
            cached = self._ledger.version(stream)
            return stored if cached is None else cached
        return cached

    @property
    def _live(self) -> bool:
        return self._backend.writable

    def _watched(self) -> None:
        self._poll_bell.set()

    async def _poll(self) -> None:
        """Wake waiters when another process commits (read-only stores)."""
        while not self._closed:
            if not self._feed.watched:
                self._poll_bell.clear()
                await self._poll_bell.wait()
                continue
            try:
                changed = await self._backend.changed(0.1)
            except StoreError:
                log.exception("cannot watch the log for changes; trying again")
                await asyncio.sleep(1.0)
                changed = True
            if changed:
                self._feed.wake(None)

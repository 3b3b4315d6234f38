"""`LedgerStore`: a log with one writing process, which plans its batches in memory.

Shared by memory and SQLite: group commit, the ledger, the feed. A backend only looks up, writes one
batch atomically, and selects.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from app.events.absent import Absent
from app.events.backend import Backend
from app.events.envelope import Event
from app.events.feed import Feed
from app.events.ids import uuid7
from app.events.ledger import Claim, Erasure, Expire, Heartbeat, Ledger, Load, Op, Redact
from app.events.logstore import LogStore, check
from app.events.queue import Request
from app.events.store import (
    Append,
    Appended,
    Claimed,
    Conflict,
    Fence,
    Outcome,
    StoreClosed,
    StoreError,
)
from app.events.writer import GroupCommit

__all__ = ["LedgerStore"]

log = logging.getLogger(__name__)

WEEK = 7 * 24 * 3600 * 10**9
"""How long commands are remembered, in nanoseconds."""


class LedgerStore(LogStore):
    """A log over a backend that keeps rows."""

    def __init__(
        self,
        backend: Backend,
        *,
        feed: Feed | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__(backend, feed)
        self._backend = backend
        self._clock = clock
        self._ledger = Ledger()
        self._absent = Absent()
        self._writer = GroupCommit(self._commit, between=backend.maintain, idle=self._tidy)
        self._poller: asyncio.Task[None] | None = None
        self._poll_bell = asyncio.Event()
        self._stale = False
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

    async def append(self, append: Append) -> Outcome:
        """See `EventStore.append`."""
        check(append)
        self._refuse_unless_writable()
        return await self._writer.submit(append)  # type: ignore[no-any-return]

    async def append_many(self, appends: Sequence[Append]) -> list[Outcome]:
        """See `EventStore.append_many`."""
        for append in appends:
            check(append)
        self._refuse_unless_writable()
        return await self._writer.submit_many(appends)

    async def load(self, events: Sequence[Event], salts: Sequence[bytes]) -> int:
        """Write events as they are, positions and salts included; returns the new head.

        For import: with the same salts the seals of the old log hold in the new one.

        Raises:
            StoreError: They do not follow the log without a gap.

        """
        return await self._submit(Load(events, salts))  # type: ignore[no-any-return]

    async def adopt(self, incarnation: str | None = None) -> str:
        """See `LogStore.adopt`."""
        self._refuse_unless_writable()
        new = incarnation or uuid7()
        if not await self._backend.adopt(new, empty=incarnation is not None):
            raise StoreError("the log has events, and its own incarnation")
        self.incarnation = new
        return new

    async def claim(
        self, *, worker: str, limit: int, lease: float, models: Sequence[str] | None = None
    ) -> list[Claimed]:
        """See `EventStore.claim`."""
        rows: list[Request] = await self._submit(Claim(worker, limit, lease, models))
        return [
            Claimed(row.id, row.stream, row.epoch, await self._event_at(row.queued)) for row in rows
        ]

    async def heartbeat(self, *, worker: str, lease: float) -> list[Fence]:
        """See `EventStore.heartbeat`."""
        return await self._submit(Heartbeat(worker, lease))  # type: ignore[no-any-return]

    async def expire(
        self, *, worker: str | None = None, reason: str = "lease expired"
    ) -> list[str]:
        """See `EventStore.expire`."""
        return await self._submit(Expire(worker, reason))  # type: ignore[no-any-return]

    async def redact(
        self,
        erasures: Sequence[Erasure],
        *,
        expected: Mapping[str, int],
        reason: str,
        actor: str = "system",
    ) -> Appended | Conflict:
        """See `LogStore.redact`."""
        return await self._submit(Redact(erasures, expected, reason, actor))  # type: ignore[no-any-return]

    async def scrub(self) -> bool:
        """See `LogStore.scrub`."""
        self._refuse_unless_writable()
        return await self._backend.scrub()

    async def beat(self, *, node: str, lease: float) -> frozenset[str]:
        """One process writes; that it can do so is the proof that no other is alive."""
        self._refuse_unless_writable()
        return frozenset({node})

    async def leave(self, *, node: str) -> None:
        """Nobody else would notice."""

    async def _submit(self, op: Op) -> Any:
        self._refuse_unless_writable()
        return await self._writer.submit(op)

    def _refuse_unless_writable(self) -> None:
        if self._closed:
            raise StoreClosed("the store is closed")
        if not self._backend.writable:
            raise StoreClosed("the log was opened for reading only")

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

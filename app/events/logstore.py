"""`LogStore`: the event store over a backend that keeps rows. Shared by memory and SQLite.

Here is everything that is the same for both: group commit, the ledger, the feed, following. A
backend only looks up, writes one batch atomically, and selects.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from app.events.absent import Absent
from app.events.backend import Backend, Row
from app.events.envelope import Event
from app.events.feed import Feed
from app.events.ledger import (
    Claim,
    Expire,
    Heartbeat,
    Ledger,
    Load,
    Op,
)
from app.events.lifecycle import TRANSITIONS
from app.events.queue import Request, queued_fields
from app.events.store import Append, Claimed, Fence, Lease, Outcome, StoreClosed, StoreError
from app.events.writer import GroupCommit

__all__ = ["LogStore"]

log = logging.getLogger(__name__)

PAGE = 1_000

WEEK = 7 * 24 * 3600 * 10**9
"""How long commands are remembered, in nanoseconds."""

_STREAM = re.compile(r"[a-z][a-z0-9_]*(/[^\s/]{1,200})?")


class LogStore:
    """An `app.events.store.EventStore`. Open one with `app.events.open.open_store`."""

    def __init__(
        self,
        backend: Backend,
        *,
        feed: Feed | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._ledger = Ledger()
        self._absent = Absent()
        self._feed = feed or Feed()
        self._writer = GroupCommit(self._commit, between=backend.maintain, idle=self._tidy)
        self._poller: asyncio.Task[None] | None = None
        self._poll_bell = asyncio.Event()
        self._closed = False
        self._stale = False
        self.incarnation = backend.incarnation
        """Id of this log's life; a restored or replaced log has another."""

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
        _check(append)
        self._refuse_unless_writable()
        return await self._writer.submit(append)  # type: ignore[no-any-return]

    async def append_many(self, appends: Sequence[Append]) -> list[Outcome]:
        """See `EventStore.append_many`."""
        for append in appends:
            _check(append)
        self._refuse_unless_writable()
        return await self._writer.submit_many(appends)

    async def load(self, events: Sequence[Event], salts: Sequence[bytes]) -> int:
        """Write events as they are, positions and salts included; returns the new head.

        For import: with the same salts the seals of the old log hold in the new one.

        Raises:
            StoreError: They do not follow the log without a gap.

        """
        return await self._submit(Load(events, salts))  # type: ignore[no-any-return]

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

    async def leases(self, *, stream: str | None = None, open_only: bool = True) -> list[Lease]:
        """See `EventStore.leases`."""
        self._refuse_if_closed()
        return await self._backend.leases(stream, open_only)

    async def fetch(
        self,
        *,
        after: int = 0,
        stream: str | None = None,
        types: Sequence[str] | None = None,
        until: int | None = None,
        limit: int = PAGE,
    ) -> list[Event]:
        """See `EventStore.fetch`."""
        end = await self._position(stream)
        if until is not None and until < end:
            end = until
        if after >= end or limit <= 0:
            return []
        span = end - after
        if self._backend.writable:  # else the feed does not see what is committed
            count = span if types is not None else min(limit, span)
            recent = self._feed.recent(after, stream, count)
            if recent is not None and len(recent) == count:
                if types is not None:
                    recent = [event for event in recent if event.type in types][:limit]
                return recent
        return await self._backend.select(after, end, stream, types, limit)

    async def read(
        self,
        *,
        after: int = 0,
        stream: str | None = None,
        types: Sequence[str] | None = None,
        until: int | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Event]:
        """See `EventStore.read`."""
        end = await self._position(stream)
        end = end if until is None else min(until, end)
        left = limit
        while after < end and left != 0:
            size = PAGE if left is None else min(PAGE, left)
            events = await self.fetch(
                after=after, stream=stream, types=types, until=end, limit=size
            )
            for event in events:
                yield event
            if len(events) < size:
                return
            after = events[-1].seq if stream is None else events[-1].version
            left = None if left is None else left - size

    async def wait(self, *, after: int, stream: str | None = None) -> None:
        """See `EventStore.wait`."""
        loop = asyncio.get_running_loop()
        while True:
            bell = loop.create_future()
            ring = partial(_set, bell)
            self._feed.register(stream, ring)  # before looking, so that nothing slips between
            self._poll_bell.set()
            try:
                if await self._position(stream) > after:
                    return
                await bell
            finally:
                self._feed.unregister(stream, ring)

    async def follow(
        self, *, after: int = 0, stream: str | None = None, types: Sequence[str] | None = None
    ) -> AsyncIterator[list[Event]]:
        """See `EventStore.follow`."""
        while True:
            end = await self._position(stream)
            if end <= after:
                await self.wait(after=after, stream=stream)
                continue
            events = await self.fetch(after=after, stream=stream, types=types, until=end)
            if len(events) == PAGE:
                end = events[-1].seq if stream is None else events[-1].version
            after = end
            if events:
                yield events

    async def _position(self, stream: str | None) -> int:
        return await self.head() if stream is None else await self.stream_version(stream)

    async def _event_at(self, seq: int) -> Event:
        event = self._feed.at(seq)
        if event is None:
            event = (await self._backend.select(seq - 1, seq, None, None, 1))[0]
        return event

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreClosed("the store is closed")

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

    # ------------------------------------------------------------- for seals and verification

    async def leaves(self, *, after: int, until: int) -> list[bytes]:
        """Leaf hashes (32 bytes each) of ``after < seq <= until``."""
        return await self._backend.leaves(after, until)

    async def rows(self, *, after: int, limit: int) -> list[Row | StoreError]:
        """Stored rows with salt and leaf; a `StoreError` in place of an unreadable one."""
        return await self._backend.rows(after, limit)

    async def check(self) -> list[str]:
        """Complaints of the storage about its own structure (none when sound)."""
        return await self._backend.check()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _check(append: Append) -> None:
    """Refuse a malformed append before it is queued.

    Raises:
        ValueError: It has no events, a malformed stream name, or an event of a request's life
            without its request.

    """
    if not append.events:
        raise ValueError("an append needs at least one event")
    if _STREAM.fullmatch(append.stream) is None:
        raise ValueError(f"malformed stream name {append.stream!r}")
    for event in append.events:
        if event.type in TRANSITIONS:
            if not event.request:
                raise ValueError(f"{event.type} needs the envelope's request")
            if event.type == "request.queued":
                try:
                    queued_fields(event.data)
                except msgspec.DecodeError as error:
                    raise ValueError(f"malformed request.queued: {error}") from error

"""`LogStore`: what is the same for every log: reading, following, waking.

A store is a `LogStore` that can write: `app.events.ledgerstore` (memory and SQLite, one writing
process) and `app.events.postgres` (many).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

from app.events.backend import Reading, Remembered, Row
from app.events.envelope import Event
from app.events.feed import Feed
from app.events.malformed import check
from app.events.meter import Meter
from app.events.moves import ArchiveBusy, Move, Part, Spans, Upload
from app.events.objects import Objects
from app.events.ops import Claim, Erasure, Expire, Heartbeat, Load, Op, Redact
from app.events.queue import Request
from app.events.segment import Segment
from app.events.store import (
    BY_PRIORITY,
    Append,
    Appended,
    Claimed,
    Conflict,
    Fence,
    Lease,
    Order,
    Outcome,
    StoreClosed,
    StoreError,
)
from app.events.through import CACHE, Through
from app.events.writer import GroupCommit

__all__ = ["PAGE", "LogStore"]

PAGE = 1_000


class LogStore(ABC):
    """An `app.events.store.EventStore`. Open one with `app.events.open.open_store`."""

    incarnation: str
    """Id of this log's life; a restored or replaced log has another."""

    def __init__(
        self, reading: Reading, feed: Feed | None, writer: GroupCommit, *, writable: bool
    ) -> None:
        self._reading = reading
        self._through = Through(reading)
        self._archiving = asyncio.Lock()
        self._feed = feed or Feed()
        self._feed.erased = self._through.forget
        self._writer = writer
        self._writable = writable
        self._closed = False

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what was accepted, then close. Waiters and followers get `StoreClosed`."""

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

    async def load(
        self,
        events: Sequence[Event],
        salts: Sequence[bytes],
        *,
        erased: Sequence[Erasure] = (),
        commands: Mapping[str, tuple[int, int, int]] | None = None,
    ) -> int:
        """Write events as they are, positions and salts included; returns the new head.

        For import: with the same salts the seals of the old log hold in the new one.

        Args:
            events: What follows the head.
            salts: Their salts, or the inner hashes of erased payloads.
            erased: Payloads of earlier events to erase too.
            commands: Commands to remember (see `commands`); known ones stay.

        Raises:
            StoreError: They do not follow the log without a gap.
            ValueError: An event cannot be stored, or one to be erased is not there.

        """
        return await self._submit(Load(events, salts, erased, commands or {}))  # type: ignore[no-any-return]

    @abstractmethod
    async def adopt(self, incarnation: str | None = None) -> str:
        """Take over the life of the log that is about to be loaded; returns the incarnation.

        Without ``incarnation`` the log begins a new life: clients drop what they have seen of
        it. A log that was restored from a backup needs that, because it gives positions out again.

        Raises:
            StoreError: The log has events, and would take over the life of another.

        """

    async def claim(
        self,
        *,
        worker: str,
        limit: int,
        lease: float,
        models: Sequence[str] | None = None,
        order: Order = BY_PRIORITY,
    ) -> list[Claimed]:
        """See `EventStore.claim`."""
        rows: list[Request] = await self._submit(Claim(worker, limit, lease, models, order))
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

    @abstractmethod
    async def beat(self, *, node: str, lease: float) -> frozenset[str]:
        """See `EventStore.beat`."""

    @abstractmethod
    async def leave(self, *, node: str) -> None:
        """See `EventStore.leave`."""

    async def redact(
        self,
        erasures: Sequence[Erasure],
        *,
        expected: Mapping[str, int],
        reason: str,
        actor: str = "system",
    ) -> Appended | Conflict:
        """Erase payloads and append ``log.redacted``, in one transaction.

        `app.events.erasure` finds what to erase.

        Args:
            erasures: What to erase; the events are in the log.
            expected: Version of every stream they are in.
            reason: Why, for the record.
            actor: Who, for the record.

        Returns:
            Where the record is; or a `Conflict` if one of the streams has moved on.

        Raises:
            ValueError: An event is no longer where it was.

        """
        return await self._submit(Redact(erasures, expected, reason, actor))  # type: ignore[no-any-return]

    async def move(self, move: Move) -> Appended:
        """Move events between the log's table and segments, in one transaction with its record.

        `app.events.archive` says which, and sees to the objects.

        Raises:
            StoreError: One of them has to stay.
            ValueError: An event or a segment is no longer what it was.

        """
        return await self._submit(move)  # type: ignore[no-any-return]

    async def upload(self, object: str, state: Literal["noted", "doomed", "gone"]) -> None:
        """Remember an object that nothing refers to; see `Upload`.

        Raises:
            ValueError: It cannot be doomed: a segment uses it now.

        """
        await self._submit(Upload(object, state))

    @asynccontextmanager
    async def archiving(self) -> AsyncIterator[None]:
        """Hold the right to move events; one process, one task at a time.

        Raises:
            ArchiveBusy: Somebody else holds it.

        """
        if self._archiving.locked():
            raise ArchiveBusy("the archive is at work already", hint="try again later")
        async with self._archiving:
            yield

    async def scrub(self) -> bool:
        """Leave no copy of what was erased in the log's files.

        Returns:
            False if another process is in the way; try again when it is gone.

        """
        return True

    @property
    def meters(self) -> tuple[Meter, Meter]:
        """What this process measured of its commits; see `GroupCommit`: waits and sizes."""
        return self._writer.waits, self._writer.sizes

    async def _submit(self, op: Op) -> Any:
        self._refuse_unless_writable()
        return await self._writer.submit(op)

    def _refuse_unless_writable(self) -> None:
        self._refuse_if_closed()
        if not self._writable:
            raise StoreClosed("the log was opened for reading only")

    # ------------------------------------------------------------------------------ reading

    @abstractmethod
    async def head(self) -> int:
        """See `EventStore.head`."""

    @abstractmethod
    async def stream_version(self, stream: str) -> int:
        """See `EventStore.stream_version`."""

    async def leases(self, *, stream: str | None = None, open_only: bool = True) -> list[Lease]:
        """See `EventStore.leases`."""
        self._refuse_if_closed()
        return await self._reading.leases(stream, open_only)

    async def waiting(self, tenant: str) -> tuple[int, int]:
        """See `EventStore.waiting`."""
        self._refuse_if_closed()
        return await self._reading.waiting(tenant)

    async def fetch(
        self,
        *,
        after: int = 0,
        stream: str | None = None,
        types: Sequence[str] | None = None,
        until: int | None = None,
        limit: int = PAGE,
        fresh: bool = True,
    ) -> list[Event]:
        """See `EventStore.fetch`."""
        end = await (self._end if fresh else partial(LogStore._end, self))(stream, until)
        if after >= end or limit <= 0:
            return []
        span = end - after
        if self._live:
            count = span if types is not None else min(limit, span)
            recent = self._feed.recent(after, stream, count)
            if recent is not None and len(recent) == count:
                if types is not None:
                    recent = [event for event in recent if event.type in types][:limit]
                return recent
        return await self._through.select(after, end, stream, types, limit)

    async def _end(self, stream: str | None, until: int | None) -> int:
        """Position up to which a read may go."""
        end = await self._position(stream)
        return end if until is None else min(until, end)

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
        end = await self._end(stream, until)
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
            self._watched()
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

    @property
    def _live(self) -> bool:
        """Whether the feed gets every commit."""
        return True

    def _watched(self) -> None:  # noqa: B027
        """Somebody has begun to wait."""

    async def _position(self, stream: str | None) -> int:
        """Position up to which followers may read."""
        return await self.head() if stream is None else await self.stream_version(stream)

    async def _event_at(self, seq: int) -> Event:
        event = self._feed.at(seq)
        if event is None:
            event = (await self._through.select(seq - 1, seq, None, None, 1))[0]
        return event

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreClosed("the store is closed")

    # ------------------------------------------------------------- for seals and verification

    async def leaves(self, *, after: int, until: int) -> list[bytes]:
        """Leaf hashes (32 bytes each) of ``after < seq <= until``."""
        return await self._through.leaves(after, until)

    async def sound(self, *, after: int, until: int) -> list[bytes] | None:
        """Leaf hashes of ``after < seq <= until``, if all are in the table and as written.

        A quick look that may miss that they are: None says to look at `rows`.
        """
        return await self._reading.sound(after, until)

    async def rows(self, *, after: int, limit: int) -> list[Row | StoreError]:
        """Stored rows with salt and leaf; a `StoreError` in place of an unreadable one."""
        return await self._through.rows(after, limit)

    # ------------------------------------------------------------------------------- archive

    @property
    def objects(self) -> Objects | None:
        """Where archived events are; without it, reading one raises `StoreError`."""
        return self._through.objects

    def attach(self, objects: Objects, *, cache: int = CACHE) -> None:
        """Say where archived events are.

        Args:
            objects: The place; it must stay open as long as the log.
            cache: Bytes of archived events to keep in memory.

        """
        self._through.objects, self._through.cache = objects, cache

    async def hot(
        self,
        *,
        after: int = 0,
        until: int,
        stream: str | None = None,
        types: Sequence[str] | None = None,
        limit: int = PAGE,
    ) -> list[Row]:
        """Rows that are not archived, as `fetch` selects events."""
        self._refuse_if_closed()
        return await self._reading.hot(after, until, stream, types, limit)

    async def segments(
        self, *, after: int = 0, until: int = 2**62, stream: str | None = None
    ) -> list[Part]:
        """Segments with events at ``after < position <= until``, by first position."""
        self._refuse_if_closed()
        return (await self._reading.catalog(after, until, stream)).parts

    async def spans(self, object: str) -> Spans | None:
        """What the catalog says of a segment's streams; None if there is no such segment."""
        return await self._reading.spans(object)

    async def described(self, segment: Segment) -> Segment:
        """A segment as its object says it is, with its streams."""
        return await self._through.described(segment)

    async def uploads(self) -> list[str]:
        """Objects that nothing refers to: left over from a move that was cut short."""
        self._refuse_if_closed()
        return await self._reading.uploads()

    async def commands(self, *, after: str = "", limit: int = PAGE) -> list[Remembered]:
        """Commands that took effect lately, ordered by id, with ids past ``after``."""
        return await self._reading.commands(after, limit)

    async def check(self) -> list[str]:
        """Complaints of the storage about its own structure (none when sound)."""
        return await self._reading.check()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

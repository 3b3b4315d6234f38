"""`LogReader`: how every log is read and followed."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from functools import partial

from app.events.backend import Reading, Remembered, Row
from app.events.envelope import Event
from app.events.feed import Feed
from app.events.moves import Part, Spans
from app.events.objects import Objects
from app.events.segment import Segment
from app.events.store import Lease, StoreClosed, StoreError
from app.events.through import CACHE, Through

__all__ = ["PAGE", "LogReader"]

PAGE = 1_000


class LogReader(ABC):
    """The reading half of a `app.events.logstore.LogStore`.

    Args:
        reading: Reads what is in the tables.
        feed: Gets every commit, and wakes who waits for one.

    """

    def __init__(self, reading: Reading, feed: Feed) -> None:
        self._reading = reading
        self._through = Through(reading)
        self._feed = feed
        self._feed.erased = self._through.forget
        self._closed = False

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
        end = await (self._end if fresh else self._known_end)(stream, until)
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
        return await self._known_end(stream, until)

    async def _known_end(self, stream: str | None, until: int | None) -> int:
        """The same as far as this process knows; others may have written more."""
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

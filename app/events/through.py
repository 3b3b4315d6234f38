"""Reading through: archived events appear in their places among those of the log's table.

The table is asked first. Positions are gapless, so a page without a hole is whole and costs nothing
more. Else the catalog says which segments may have the rest. Table and catalog are two looks;
a generation that moved between them means that rows may have moved too, and both are taken again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from app.events.backend import Reading, Row
from app.events.envelope import Event
from app.events.moves import Part
from app.events.objects import ObjectMissing, Objects
from app.events.segment import DamagedSegment, Reader, Segment, summary
from app.events.store import StoreError

__all__ = ["CACHE", "Through"]

CACHE = 64 << 20
"""Bytes of archived events kept in memory by default."""

DECODED = 5
"""How much larger a row is decoded than as JSON, roughly."""

ATTEMPTS = 20
"""How often both looks are taken before the archive is called too busy."""


class Through:
    """Reads a table and its segments as one log.

    Attributes:
        objects: Where segments are; None: whoever needs one gets a `StoreError`.
        cache: Bytes of archived events to keep.

    """

    def __init__(self, reading: Reading) -> None:
        self.objects: Objects | None = None
        self.cache = CACHE
        self._reading = reading
        self._generation = -1
        self._holes = False  # whether the last page of rows was in part archived
        self._kept: OrderedDict[tuple[str, int], tuple[Any, int]] = OrderedDict()
        self._size = 0
        self._coming: dict[tuple[str, int], asyncio.Task[Any]] = {}

    async def select(
        self, after: int, until: int, stream: str | None, types: Sequence[str] | None, limit: int
    ) -> list[Event]:
        """See `Reading.select`."""
        for _ in range(ATTEMPTS):
            known = self._generation
            events = await self._reading.select(after, until, stream, types, limit)
            full = len(events) == limit
            last = _position(events[-1], stream) if events else after
            if types is None and last - after == len(events) and (full or last >= until):
                return events  # whole: they ascend, so their number tells
            end = last if full else until
            parts = await self._parts(known, after, end, stream)
            if parts is None:
                continue
            if not parts:
                return _unholed(events, after, stream, types)
            try:
                rows = await self._gather(parts, after, end, stream, types, limit)
            except ObjectMissing:
                if await self._parts(known, after, end, stream) is None:
                    continue  # the segment is another now
                raise
            merged = {_position(event, stream): event for event, _, _ in rows}
            merged.update((_position(event, stream), event) for event in events)
            found = [merged[position] for position in sorted(merged)[:limit]]
            return _unholed(found, after, stream, types)
        raise _busy()

    async def described(self, segment: Segment) -> Segment:
        """A segment as its object says it is."""
        reader = await self._reader(segment)
        return await asyncio.to_thread(summary, reader.data, segment.object)

    async def rows(self, after: int, limit: int) -> list[Row | StoreError]:
        """See `Reading.rows`; also of archived ones there is an error for each unreadable one."""
        for _ in range(ATTEMPTS):
            known, end = self._generation, after + limit
            found: list[Row | StoreError] = []
            if self._holes:  # most of the page may be archived: do not read past its end
                found = await self._sound(after, end)
            if not found:
                found = await self._reading.rows(after, limit)
            if _unbroken(found, after, limit):
                self._holes = False
                return found
            parts = await self._parts(known, after, end, None)
            if parts is None:
                continue
            if not parts:
                self._holes = False
                return found
            placed = _placed(found, after)
            archived = await self._archived(known, parts, placed, after, end)
            if archived is None:
                continue
            merged = {seq: row for seq, row in placed.items() if seq <= end} | archived
            if self._holes and len(merged) < limit:
                self._holes = False  # perhaps damage: look again, at whatever is there
                continue
            self._holes = True
            return [merged[seq] for seq in sorted(merged)] or found
        raise _busy()

    async def _sound(self, after: int, until: int) -> list[Row | StoreError]:
        """Rows of the table as they should be; none if one cannot be read."""
        try:
            return list(await self._reading.hot(after, until, None, None, until - after))
        except StoreError:
            return []

    async def leaves(self, after: int, until: int) -> list[bytes]:
        """See `Reading.leaves`."""
        found = await self._reading.leaves(after, until)
        if len(found) == until - after:
            return found
        found = []
        for row in await self.rows(after, until - after):
            if isinstance(row, StoreError):
                raise row
            if row[0].seq <= until:
                found.append(row[2])
        return found

    async def _archived(
        self,
        known: int,
        parts: list[Part],
        placed: dict[int, Row | StoreError],
        after: int,
        until: int,
    ) -> dict[int, Row | StoreError] | None:
        """Rows the table does not have; None if a segment has become another since ``known``."""
        found: dict[int, Row | StoreError] = {}
        broken: list[tuple[Part, StoreError]] = []
        for part in parts:
            try:
                rows = await self._gather([part], after, until, None, None, until - after)
            except StoreError as error:
                if await self._parts(known, after, until, None) is None:
                    return None
                broken.append((part, error))
                continue
            for row in rows:
                if isinstance(placed.get(row[0].seq), StoreError | None):
                    found[row[0].seq] = row
        for part, reason in broken:  # what is nowhere else must be there
            for seq in range(max(after + 1, part.first), min(until, part.last) + 1):
                if seq not in found and isinstance(placed.get(seq), StoreError | None):
                    found[seq] = reason
        return found

    async def _parts(
        self, known: int, after: int, until: int, stream: str | None
    ) -> list[Part] | None:
        """Segments that may have what was asked; None if rows may have moved since ``known``."""
        catalog = await self._reading.catalog(after, until, stream)
        self._generation = catalog.generation
        return catalog.parts if catalog.generation == known else None

    async def _gather(
        self,
        parts: list[Part],
        after: int,
        until: int,
        stream: str | None,
        types: Sequence[str] | None,
        limit: int,
    ) -> list[Row]:
        """The first ``limit`` archived rows with ``after < position <= until``."""
        found: dict[int, Row] = {}
        for part in parts:  # by first position
            if len(found) >= limit and part.first > sorted(found)[limit - 1]:
                break
            if types is not None and not set(types) & set(part.segment.types):
                continue
            reader = await self._reader(part.segment)
            taken = 0
            for block in reader.blocks(after, until, stream):
                for row in await self._block(part.segment, reader, block):
                    event, at = row[0], _position(row[0], stream)
                    if stream is not None and event.stream != stream:
                        continue
                    if after < at <= until and (types is None or event.type in types):
                        found[at] = row
                        taken += 1
                if taken >= limit:
                    break
        return [found[at] for at in sorted(found)[:limit]]

    # ------------------------------------------------------------------------------- segments

    async def _reader(self, segment: Segment) -> Reader:
        """A segment, from memory or from its object."""

        async def make() -> tuple[Reader, int]:
            if self.objects is None:
                raise StoreError(
                    f"events {segment.first}..{segment.last} are archived, and this process knows "
                    "no object store",
                    hint="set objects.url",
                )
            data = await self.objects.read(segment.object, sha256=segment.sha256)
            return await asyncio.to_thread(Reader, data), len(data)

        reader: Reader = await self._cached((segment.object, -1), make)
        return reader

    async def _block(self, segment: Segment, reader: Reader, block: int) -> list[Row]:
        async def make() -> tuple[list[Row], int]:
            rows = await asyncio.to_thread(reader.rows, block)
            return rows, reader.index.blocks[block].raw * DECODED

        rows: list[Row] = await self._cached((segment.object, block), make)
        return rows

    async def _cached(self, key: tuple[str, int], make: Any) -> Any:
        """Take from the cache, or make it; who asks meanwhile waits for the same."""
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept[0]
        task = self._coming.get(key)
        if task is None:
            task = self._coming[key] = asyncio.ensure_future(self._make(key, make))
            task.add_done_callback(_retrieved)
        return await asyncio.shield(task)

    async def _make(self, key: tuple[str, int], make: Any) -> Any:
        try:
            value, size = await make()
        except DamagedSegment as error:
            raise StoreError(f"object {key[0]}: {error.message}", hint=error.hint) from error
        except ValueError as error:  # of its key
            raise StoreError(f"the catalog of archived events is damaged: {error}") from error
        finally:
            del self._coming[key]
        self._kept[key] = value, size
        self._size += size
        while self._size > self.cache and len(self._kept) > 1:
            self._size -= self._kept.popitem(last=False)[1][1]
        return value

    def forget(self) -> None:
        """Drop what is cached: payloads in it may have been erased."""
        self._kept.clear()
        self._size = 0


def _retrieved(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # who asked may be gone


def _position(event: Event, stream: str | None) -> int:
    return event.seq if stream is None else event.version


def _unholed(
    events: list[Event], after: int, stream: str | None, types: Sequence[str] | None
) -> list[Event]:
    """Pass on events that no segment adds anything to.

    Raises:
        StoreError: One is missing between them.

    """
    last = _position(events[-1], stream) if events and types is None else after
    if last - max(after, 0) > len(events):
        there = {_position(event, stream) for event in events}
        missing = next(at for at in range(max(after, 0) + 1, last) if at not in there)
        where = f"version {missing} of {stream}" if stream else f"event {missing}"
        raise StoreError(f"{where} is missing in the log", hint="see: everlog verify")
    return events


def _unbroken(rows: Sequence[Row | StoreError], after: int, limit: int) -> bool:
    """Whether these are all rows of a page: as many as it has places, up to its last one."""
    last = rows[-1] if len(rows) == limit else None
    if last is None or isinstance(last, StoreError) or last[0].seq != after + limit:
        return False
    return not any(isinstance(row, StoreError) for row in rows)


def _placed(rows: Sequence[Row | StoreError], after: int) -> dict[int, Row | StoreError]:
    """Rows by seq; an unreadable one stands in for the place after the one before it."""
    placed: dict[int, Row | StoreError] = {}
    seq = after
    for row in rows:
        seq = seq + 1 if isinstance(row, StoreError) else row[0].seq
        placed[seq] = row
    return placed


def _busy() -> StoreError:
    return StoreError("the archive is being changed again and again", hint="try again")

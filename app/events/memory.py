"""The log in memory: for tests, demos and tools. Same semantics as SQLite, lost on exit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import msgspec

from app.events.backend import Remembered, Row
from app.events.envelope import Event
from app.events.feed import Feed
from app.events.ids import uuid7
from app.events.leaf import leaves
from app.events.ledger import Batch, Found, Missing, State
from app.events.ledgerstore import LedgerStore
from app.events.lifecycle import TERMINAL
from app.events.moves import Catalog, Move, Part, Spans
from app.events.ops import Erasure
from app.events.queue import Request, to_lease
from app.events.segment import Segment
from app.events.store import Lease, StoreError

__all__ = ["MemoryBackend", "MemoryStore"]


class MemoryBackend:
    """Rows in lists and dictionaries."""

    writable = True

    def __init__(self) -> None:
        self.incarnation = uuid7()
        self.events: list[Event | None] = []  # by seq; None where one is archived
        self._salts: list[bytes] = []
        self._leaves: list[bytes] = []
        self._streams: dict[str, list[Event | None]] = {}
        self._ids: dict[str, int] = {}
        self._types: dict[str, int] = {}
        self._requests: dict[str, Request] = {}
        self._commands: dict[str, tuple[int, int, int]] = {}
        self._segments: dict[str, Segment] = {}
        self._uploads: dict[str, bool] = {}  # object: whether it is doomed
        self._generation = 0

    async def state(self) -> State:
        """Read the end of the log."""
        open_rows = [row for row in self._requests.values() if row.state not in TERMINAL]
        return State(len(self.events), len(self._ids), dict(self._types), open_rows)

    async def lookup(self, missing: Missing) -> Found:
        """Look keys up for the ledger."""
        return Found(
            streams={
                name: (self._ids[name], len(self._streams[name]))
                for name in missing.streams
                if name in self._ids
            },
            requests={id: self._requests[id] for id in missing.requests if id in self._requests},
            commands={
                id: self._commands[id][:2] for id in missing.commands if id in self._commands
            },
        )

    async def write(self, batch: Batch) -> None:
        """Add a batch.

        Raises:
            ValueError: What is to be erased or moved is no longer what it was.

        """
        for moved in batch.moved:
            self._check(moved.move)
        if any(u.state == "doomed" and u.object not in self._uploads for u in batch.uploads):
            raise ValueError("an object is in use now")
        if any(self._at(e.seq, e.stream, e.version) is None for e, _ in batch.erased):
            raise ValueError("an event to be erased is no longer where it was")
        hashes = leaves(batch.events, batch.salts)
        self.events += batch.events
        self._salts += batch.salts
        self._leaves += hashes
        self._ids.update((name, id) for id, name in batch.streams)
        self._types.update((name, id) for id, name in batch.types)
        for event in batch.events:
            self._streams.setdefault(event.stream, []).append(event)
        self._requests |= batch.requests
        self._commands |= batch.commands
        for erasure, _ in batch.erased:
            self._erase(erasure)
        for moved in batch.moved:
            self._move(moved.move)
        for upload in batch.uploads:
            if upload.state == "gone":
                self._uploads.pop(upload.object, None)
            else:
                self._uploads[upload.object] = upload.state == "doomed"

    def _at(self, seq: int, stream: str, version: int) -> Event | None:
        """The event at a place, if it is in the table."""
        event = self.events[seq - 1] if seq <= len(self.events) else None
        there = event is not None and (event.stream, event.version) == (stream, version)
        return event if there else None

    def _erase(self, erasure: Erasure) -> None:
        event = self._at(erasure.seq, erasure.stream, erasure.version)
        assert event is not None
        self._put(msgspec.structs.replace(event, data=erasure.left), erasure.opening)

    def _put(self, event: Event, salt: bytes) -> None:
        self.events[event.seq - 1] = event
        self._streams[event.stream][event.version - 1] = event
        self._salts[event.seq - 1] = salt

    def _check(self, move: Move) -> None:
        wrong = move.log != self.incarnation or any(
            self._at(p.seq, p.stream, p.version) is None or self._salts[p.seq - 1] != p.opening
            for p in move.remove
        )
        if wrong:
            raise ValueError("an event to be archived is no longer what it was")
        if move.drop is not None and move.drop.object not in self._segments:
            raise ValueError(f"segment {move.drop.object} is no longer what it was")
        if move.add is not None and self._uploads.get(move.add.object, True):
            raise ValueError(f"object {move.add.object} was deleted meanwhile")

    def _move(self, move: Move) -> None:
        for place in move.remove:
            self.events[place.seq - 1] = None
            self._streams[place.stream][place.version - 1] = None
        for event, salt, _ in move.insert:
            self._put(event, salt)
        if move.drop is not None:
            del self._segments[move.drop.object]
            self._uploads[move.drop.object] = True
        if move.add is not None:
            self._segments[move.add.object] = move.add
            del self._uploads[move.add.object]
        self._generation += 1

    async def select(
        self, after: int, until: int, stream: str | None, types: Sequence[str] | None, limit: int
    ) -> list[Event]:
        """Events with ``after < position <= until`` in order."""
        return list(islice(self._select(after, until, stream, types), limit))

    def _select(
        self, after: int, until: int, stream: str | None, types: Sequence[str] | None
    ) -> Iterator[Event]:
        events = self.events if stream is None else self._streams.get(stream, [])
        for event in islice(events, after, until):
            if event is not None and (types is None or event.type in types):
                yield event

    async def rows(self, after: int, limit: int) -> list[Row | StoreError]:
        """Rows with salt and leaf."""
        return list(await self.hot(after, len(self.events), None, None, limit))

    async def hot(
        self, after: int, until: int, stream: str | None, types: Sequence[str] | None, limit: int
    ) -> list[Row]:
        """Rows of the table alone, as `select` selects events."""
        events = islice(self._select(after, until, stream, types), limit)
        return [(e, self._salts[e.seq - 1], self._leaves[e.seq - 1]) for e in events]

    async def sound(self, after: int, until: int) -> list[bytes] | None:
        """There is nothing quicker than `rows`."""
        return None

    async def leaves(self, after: int, until: int) -> list[bytes]:
        """Leaf hashes."""
        return [leaf for _, _, leaf in await self.hot(after, until, None, None, until - after)]

    async def catalog(self, after: int, until: int, stream: str | None) -> Catalog:
        """Segments with events at ``after < position <= until``."""
        parts = [
            Part(segment, span.first, span.last)
            for segment in self._segments.values()
            for span in ([segment] if stream is None else [segment.streams.get(stream)])
            if span is not None and span.last > after and span.first <= until
        ]
        return Catalog(self._generation, sorted(parts, key=lambda part: part.first))

    async def spans(self, object: str) -> Spans | None:
        """What the catalog says of a segment's streams."""
        segment = self._segments.get(object)
        if segment is None:
            return None
        return {name: (span.first, span.last) for name, span in segment.streams.items()}

    async def uploads(self) -> list[str]:
        """Objects that no segment refers to."""
        return sorted(self._uploads)

    async def adopt(self, incarnation: str, *, empty: bool) -> bool:
        """Take another incarnation."""
        if empty and self.events:
            return False
        self.incarnation = incarnation
        return True

    async def head(self) -> int:
        """Highest seq."""
        return len(self.events)

    async def version(self, stream: str) -> int:
        """Highest version of a stream."""
        return len(self._streams.get(stream, ()))

    async def leases(self, stream: str | None, open_only: bool) -> list[Lease]:
        """Rows of the request table, oldest first."""
        return [
            to_lease(row)
            for row in self._requests.values()
            if (stream is None or row.stream == stream)
            and not (open_only and row.state in TERMINAL)
        ]

    async def waiting(self, tenant: str) -> tuple[int, int]:
        """How many requests are queued: of a tenant, and in all."""
        queued = [row.tenant for row in self._requests.values() if row.state == "queued"]
        return queued.count(tenant), len(queued)

    async def commands(self, after: str, limit: int) -> list[Remembered]:
        """Commands that took effect lately, ordered by id."""
        ids = sorted(id for id in self._commands if id > after)[:limit]
        return [(id, *self._commands[id]) for id in ids]

    async def check(self) -> list[str]:
        """Nothing to complain about."""
        return []

    async def scrub(self) -> bool:
        """Nothing is kept but what can be read."""
        return True

    async def changed(self, seconds: float) -> bool:
        """No other process can write."""
        return False

    async def maintain(self) -> None:
        """Nothing to maintain."""

    async def tidy(self, forget: int) -> None:
        """Forget commands older than ``forget``."""
        self._commands = {id: row for id, row in self._commands.items() if row[2] >= forget}

    async def aclose(self) -> None:
        """Nothing to release."""


class MemoryStore(LedgerStore):
    """An event store without a file. Use ``async with MemoryStore() as store``."""

    def __init__(
        self, *, feed: Feed | None = None, clock: Callable[[], int] = time.time_ns
    ) -> None:
        super().__init__(MemoryBackend(), feed=feed, clock=clock)

    async def __aenter__(self) -> MemoryStore:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

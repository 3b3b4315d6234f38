"""The log in memory: for tests, demos and tools. Same semantics as SQLite, lost on exit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from app.events.backend import Remembered, Row
from app.events.envelope import Event
from app.events.feed import Feed
from app.events.ids import uuid7
from app.events.leaf import leaves
from app.events.ledger import Batch, Erasure, Found, Missing, State
from app.events.ledgerstore import LedgerStore
from app.events.lifecycle import TERMINAL
from app.events.queue import Request, to_lease
from app.events.store import Lease, StoreError

__all__ = ["MemoryBackend", "MemoryStore"]


class MemoryBackend:
    """Rows in lists and dictionaries."""

    writable = True

    def __init__(self) -> None:
        self.incarnation = uuid7()
        self.events: list[Event] = []
        self._salts: list[bytes] = []
        self._leaves: list[bytes] = []
        self._streams: dict[str, list[Event]] = {}
        self._ids: dict[str, int] = {}
        self._types: dict[str, int] = {}
        self._requests: dict[str, Request] = {}
        self._commands: dict[str, tuple[int, int, int]] = {}

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
        """Add a batch."""
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

    def _erase(self, erasure: Erasure) -> None:
        at, stream = erasure.seq - 1, self._streams[erasure.stream]
        self.events[at] = msgspec.structs.replace(self.events[at], data=erasure.left)
        stream[erasure.version - 1] = self.events[at]
        self._salts[at] = erasure.opening

    async def select(
        self, after: int, until: int, stream: str | None, types: Sequence[str] | None, limit: int
    ) -> list[Event]:
        """Events with ``after < position <= until`` in order."""
        events = self.events if stream is None else self._streams.get(stream, [])
        if types is None:
            return events[after : min(until, after + limit)]
        return [event for event in events[after:until] if event.type in types][:limit]

    async def rows(self, after: int, limit: int) -> list[Row | StoreError]:
        """Rows with salt and leaf."""
        end = after + limit
        return list(
            zip(
                self.events[after:end], self._salts[after:end], self._leaves[after:end], strict=True
            )
        )

    async def leaves(self, after: int, until: int) -> list[bytes]:
        """Leaf hashes."""
        return self._leaves[after:until]

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

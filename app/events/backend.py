"""What the stores need of the place where the rows are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from msgspec.structs import astuple

from app.events.envelope import Event
from app.events.leaf import leaves
from app.events.ledger import Batch, Found, Missing, State
from app.events.moves import Catalog, Spans
from app.events.store import Lease, StoreError

__all__ = ["Backend", "Reading", "Remembered", "Row", "event_rows"]

#: An event as stored: event, salt, leaf.
Row = tuple[Event, bytes, bytes]

#: A command that took effect: id, seq and version of its last event, time (ns).
Remembered = tuple[str, int, int, int]


class Reading(Protocol):
    """Reads rows. All methods raise `StoreError` when the storage fails.

    Archived events are not among the rows: see `app.events.through`.
    """

    async def select(
        self,
        after: int,
        until: int,
        stream: str | None,
        types: Sequence[str] | None,
        limit: int,
    ) -> list[Event]:
        """Events with ``after < position <= until`` in order."""
        ...

    async def rows(self, after: int, limit: int) -> list[Row | StoreError]:
        """Rows as stored, even damaged ones, for `app.events.verify`."""
        ...

    async def sound(self, after: int, until: int) -> list[bytes] | None:
        """Leaf hashes of ``after < seq <= until``, if all rows are here and as they were written.

        A quick look that may miss that they are: None says to look at `rows`.
        """
        ...

    async def leaves(self, after: int, until: int) -> list[bytes]:
        """Leaf hashes of ``after < seq <= until``."""
        ...

    async def leases(self, stream: str | None, open_only: bool) -> list[Lease]:
        """Rows of the request table, oldest first."""
        ...

    async def waiting(self, tenant: str) -> tuple[int, int]:
        """How many requests are queued: of a tenant, and in all."""
        ...

    async def commands(self, after: str, limit: int) -> list[Remembered]:
        """Commands that took effect lately, ordered by id."""
        ...

    async def check(self) -> list[str]:
        """Complaints of the storage about its own structure."""
        ...

    async def hot(
        self,
        after: int,
        until: int,
        stream: str | None,
        types: Sequence[str] | None,
        limit: int,
    ) -> list[Row]:
        """Rows of the table alone, as `select` selects events."""
        ...

    async def catalog(self, after: int, until: int, stream: str | None) -> Catalog:
        """Segments with events at ``after < position <= until``, by first position; one look."""
        ...

    async def spans(self, object: str) -> Spans | None:
        """What the catalog says of a segment's streams; None if there is no such segment."""
        ...

    async def uploads(self) -> list[str]:
        """Objects that no segment refers to."""
        ...


class Backend(Reading, Protocol):
    """Where the rows of a `LedgerStore` are."""

    incarnation: str
    writable: bool

    async def state(self) -> State:
        """Read the end of the log."""
        ...

    async def lookup(self, missing: Missing) -> Found:
        """Look keys up for the ledger."""
        ...

    async def write(self, batch: Batch) -> None:
        """Write a batch in one durable transaction."""
        ...

    async def adopt(self, incarnation: str, *, empty: bool) -> bool:
        """Store another incarnation; False if there are events and ``empty`` is asked for."""
        ...

    async def head(self) -> int:
        """Highest seq stored."""
        ...

    async def version(self, stream: str) -> int:
        """Highest version of a stream stored."""
        ...

    async def scrub(self) -> bool:
        """Leave no copy of what was overwritten; False if another process is in the way."""
        ...

    async def changed(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for commits of another process (read-only backends)."""
        ...

    async def maintain(self) -> None:
        """Short maintenance between two batches."""
        ...

    async def tidy(self, forget: int) -> None:
        """Maintenance while nothing is written; forget commands older than ``forget`` (ns)."""
        ...

    async def aclose(self) -> None:
        """Release everything."""
        ...


def event_rows(batch: Batch) -> list[tuple[Any, ...]]:
    """Rows of the table of events, with the ids of streams and types in place of their names."""
    hashes = leaves(batch.events, batch.salts)
    return [
        (row[0], stream_id, row[2], type_id, *row[4:], salt, leaf)
        for row, stream_id, type_id, salt, leaf in zip(
            map(astuple, batch.events),
            batch.stream_ids,
            batch.type_ids,
            batch.salts,
            hashes,
            strict=True,
        )
    ]

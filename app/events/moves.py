"""What a transaction changes when events move between the log's table and segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec.structs import astuple

from app.events.envelope import NewEvent
from app.events.segment import Segment
from app.events.store import StoreError

if TYPE_CHECKING:
    from app.events.backend import Row

__all__ = [
    "ArchiveBusy",
    "Catalog",
    "Move",
    "Moved",
    "Part",
    "Place",
    "Spans",
    "Upload",
    "catalog",
    "columns",
    "spans",
]


class ArchiveBusy(StoreError):
    """Somebody else is archiving or restoring."""


class Place(msgspec.Struct, frozen=True):
    """An event to take out of the table. It must be just this one, with this salt."""

    seq: int
    stream: str
    version: int
    opening: bytes


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Move events, and append the record of it to the stream ``log``; gives its outcome.

    Attributes:
        log: Incarnation of the log that is meant.
        record: The event that says so.
        remove: Events that leave the table.
        insert: Rows that come back into it.
        add: A segment that holds events from now on.
        drop: A segment that holds none any more; its object may be deleted afterwards.

    """

    log: str
    record: NewEvent
    remove: Sequence[Place] = ()
    insert: Sequence[Row] = ()
    add: Segment | None = None
    drop: Segment | None = None

    @property
    def streams(self) -> set[str]:
        """Names of all streams concerned."""
        return set(self._streams())

    def _streams(self) -> Iterator[str]:
        yield from (place.stream for place in self.remove)
        yield from (event.stream for event, _, _ in self.insert)
        if self.add is not None:
            yield from self.add.streams


class Upload(msgspec.Struct, frozen=True):
    """Remember an object that nothing refers to, or no longer remember it.

    It is ``noted`` before it is stored, so that whatever happens the next run finds it and deletes
    it: makes it ``doomed``, after which no segment may begin to use it, and ``gone`` in the end.
    """

    object: str
    state: Literal["noted", "doomed", "gone"]


class Moved(msgspec.Struct, frozen=True):
    """A move as it is written: with the ids of streams and event types."""

    move: Move
    streams: dict[str, int]
    types: dict[str, int]


class Part(msgspec.Struct, frozen=True):
    """A segment, and the positions of what was asked for in it: ``first..last``, with gaps."""

    segment: Segment
    first: int
    last: int


class Catalog(msgspec.Struct, frozen=True):
    """Segments that may have what was asked for.

    ``generation`` is another number after every move.
    """

    generation: int
    parts: list[Part]


#: Lowest and highest version of each stream in a segment; the name is None where it is not known.
Spans = dict[str | None, tuple[int, int]]


def columns(segment: Segment) -> tuple[Any, ...]:
    """Columns of a segment: object, sha256, bytes, first, last, events, types."""
    *simple, types, _ = astuple(segment)
    return (*simple, msgspec.json.encode(types).decode())


def catalog(rows: Sequence[Sequence[Any]]) -> Catalog:
    """Make a catalog of rows: generation, a segment's columns or nulls, first, last."""
    if not rows:
        raise StoreError("the catalog of archived events is damaged: it is not there")
    return Catalog(rows[0][0], [_part(row) for row in rows if row[1] is not None])


def spans(rows: Sequence[Sequence[Any]]) -> Spans | None:
    """Spans of rows: name, first, last; None of none."""
    return {name: (first, last) for name, first, last in rows} or None


def _part(row: Sequence[Any]) -> Part:
    try:
        types = msgspec.json.decode(row[7], type=tuple[str, ...])
    except (msgspec.DecodeError, TypeError) as error:
        raise StoreError(
            f"the catalog of archived events is damaged: segment {row[1]}: {error}",
            hint="see: everlog verify",
        ) from error
    segment = Segment(
        object=row[1],
        sha256=row[2],
        bytes=row[3],
        first=row[4],
        last=row[5],
        events=row[6],
        types=types,
    )
    return Part(segment, row[8], row[9])

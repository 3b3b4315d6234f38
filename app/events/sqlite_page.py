"""Many events of a SQLite log at once: a page is one row, in which each column is one value.

Python's ``sqlite3`` lets go of the interpreter for each row and takes it back after it. Where
another thread wants it too (a fold of the page before, the server's loop) they pass it to and fro
for every event. Here SQLite does all of a page in one step, beside whatever else is done.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from app.events.envelope import Event
from app.events.sqlite_sql import select_events

__all__ = ["select"]

MANY = 500
"""Events of a page; fewer are read row by row."""

SELECT_PAGE = """
    SELECT group_concat(e.seq), group_concat(s.name, ?1), group_concat(e.version),
           group_concat(t.name, ?1), group_concat(e.schema), group_concat(e.time),
           group_concat(e.actor, ?1), group_concat(ifnull(e.request, ?2), ?1),
           group_concat(ifnull(e.run, ?2), ?1), group_concat(ifnull(e.cause, ?2), ?1),
           CAST(group_concat(e.data, ?1) AS BLOB), count(e.request), count(e.run), count(e.cause)
    FROM event e
    CROSS JOIN stream s ON s.id = e.stream_id
    CROSS JOIN event_type t ON t.id = e.type_id
    WHERE e.seq > ?3 AND e.seq <= ?4"""

_BETWEEN, _NULL = "\0", "\1"
"""What stands between two values of a column, and for one that is null."""

_integers = msgspec.json.Decoder(list[int]).decode


def select(
    conn: sqlite3.Connection,
    after: int,
    until: int,
    stream: str | None,
    types: Sequence[str] | None,
    limit: int,
) -> list[Event]:
    """Events with ``after < position <= until`` in order; see `select_events`."""
    if stream is None and types is None and limit >= MANY:
        last = min(until, after + limit)
        events = _select_page(conn, after, last)
        if events is not None and (last == until or len(events) == limit):
            return events  # else some are archived, and others may be past them
    return select_events(conn, after, until, stream, types, limit)


def _select_page(conn: sqlite3.Connection, after: int, until: int) -> list[Event] | None:
    """Events with ``after < seq <= until``; None if they can only be read row by row."""
    try:
        row = conn.execute(SELECT_PAGE, (_BETWEEN, _NULL, after, until)).fetchone()
        return _events(row) if row[0] is not None else []
    except (ValueError, sqlite3.Error):  # whatever is wrong is told of the row it is wrong with
        return None


def _events(row: Sequence[Any]) -> list[Event]:
    """The events of a page.

    Raises:
        ValueError: They cannot be told apart: a value holds what stands between them.

    """
    seqs, versions, schemas, times = (_integers(f"[{row[at]}]") for at in (0, 2, 4, 5))
    streams, types, actors = (row[at].split(_BETWEEN) for at in (1, 3, 6))
    requests, runs, causes = (_optional(row[at], row[at + 4]) for at in (7, 8, 9))
    datas = row[10].split(_BETWEEN.encode())
    columns: list[list[Any]] = [seqs, streams, versions, types, schemas, times]
    columns += [actors, requests, runs, causes, datas]
    if any(len(column) != len(seqs) for column in columns) or seqs != sorted(seqs):
        raise ValueError("not one value for each event")
    return list(map(Event, *columns))


def _optional(texts: str, number: int) -> list[str | None]:
    """Values of a column, ``number`` of which are not null.

    Raises:
        ValueError: One of them looks like null.

    """
    found = texts.split(_BETWEEN)
    if len(found) - found.count(_NULL) != number:
        raise ValueError("values that look like null")
    return [None if text == _NULL else text for text in found]

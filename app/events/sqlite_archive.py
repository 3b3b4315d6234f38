"""SQL of archived events in SQLite: moving rows out and back, and finding their segments.

Synchronous, on a connection's own thread, like `app.events.sqlite_sql`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import astuple

from app.events import sqlite_sql as sql
from app.events.backend import Row
from app.events.envelope import Event
from app.events.ledger import Batch
from app.events.moves import Catalog, Move, Moved, Spans, catalog, columns, spans
from app.events.segment import Segment
from app.events.sqlite_sql import Connection

__all__ = ["select_catalog", "select_hot", "select_spans", "select_uploads", "write_moves"]

INSERT_SEGMENT = """
    INSERT INTO segment (object, sha256, bytes, first, last, events, types)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""

INSERT_SEGMENT_STREAM = """
    INSERT INTO segment_stream (stream_id, segment_id, first, last)
    VALUES (?, (SELECT id FROM segment WHERE object = ?), ?, ?)"""

NOTE_UPLOAD = "INSERT INTO segment_upload (object, doomed) VALUES (?, ?)"

DOOM_UPLOAD = "UPDATE segment_upload SET doomed = 1 WHERE object = ?"

USE_UPLOAD = "DELETE FROM segment_upload WHERE object = ? AND NOT doomed"

DELETE_UPLOAD = "DELETE FROM segment_upload WHERE object = ?"

# What is deleted is named by log, stream and position, and must have the salt that was archived.
DELETE_EVENT = """
    DELETE FROM event
    WHERE (SELECT incarnation FROM log) = ? AND seq = ? AND stream_id = ? AND version = ?
    AND salt = ?"""

DELETE_SEGMENT_STREAMS = """
    DELETE FROM segment_stream
    WHERE (SELECT incarnation FROM log) = ?
    AND segment_id = (SELECT id FROM segment WHERE object = ? AND first = ? AND last = ?)"""

DELETE_SEGMENT = """
    DELETE FROM segment
    WHERE (SELECT incarnation FROM log) = ? AND object = ? AND first = ? AND last = ?"""

NEXT_GENERATION = "UPDATE archive SET generation = generation + 1"

_SEGMENT = "s.object, s.sha256, s.bytes, s.first, s.last, s.events, s.types"

SELECT_SEGMENTS = f"""
    SELECT a.generation, {_SEGMENT}, s.first, s.last
    FROM archive a LEFT JOIN segment s ON s.last > ? AND s.first <= ? ORDER BY s.first"""

SELECT_SEGMENTS_OF_STREAM = f"""
    SELECT a.generation, {_SEGMENT}, p.first, p.last
    FROM archive a
    LEFT JOIN segment_stream p ON p.stream_id = (SELECT id FROM stream WHERE name = ?)
        AND p.last > ? AND p.first <= ?
    LEFT JOIN segment s ON s.id = p.segment_id
    ORDER BY p.first"""

SELECT_SPANS = """
    SELECT n.name, p.first, p.last
    FROM segment s LEFT JOIN segment_stream p ON p.segment_id = s.id
    LEFT JOIN stream n ON n.id = p.stream_id WHERE s.object = ?"""

SELECT_UPLOADS = "SELECT object FROM segment_upload ORDER BY object"


def write_moves(conn: Connection, batch: Batch) -> None:
    """Write the moves and uploads of a batch, inside the caller's transaction.

    Raises:
        ValueError: An event or a segment is no longer what it was.

    """
    for moved in batch.moved:
        _remove(conn, moved)
        _drop(conn, moved.move)
        if moved.move.insert:
            conn.executemany(sql.INSERT_EVENT, [_row(moved, row) for row in moved.move.insert])
        if moved.move.add is not None:
            _add(conn, moved, moved.move.add)
        conn.execute(NEXT_GENERATION)
    for upload in batch.uploads:
        if upload.state == "noted":
            conn.execute(NOTE_UPLOAD, (upload.object, False))
        elif upload.state == "gone":
            conn.execute(DELETE_UPLOAD, (upload.object,))
        elif _changes(conn, DOOM_UPLOAD, [(upload.object,)]) != 1:
            raise ValueError(f"object {upload.object} is in use now")


def _remove(conn: Connection, moved: Moved) -> None:
    move = moved.move
    rows = [(move.log, p.seq, moved.streams[p.stream], p.version, p.opening) for p in move.remove]
    if rows and _changes(conn, DELETE_EVENT, rows) != len(rows):
        raise ValueError("an event to be archived is no longer what it was")


def _drop(conn: Connection, move: Move) -> None:
    if move.drop is None:
        return
    key = (move.log, move.drop.object, move.drop.first, move.drop.last)
    conn.execute(DELETE_SEGMENT_STREAMS, key)
    if _changes(conn, DELETE_SEGMENT, [key]) != 1:
        raise ValueError(f"segment {move.drop.object} is no longer what it was")
    conn.execute(NOTE_UPLOAD, (move.drop.object, True))


def _add(conn: Connection, moved: Moved, segment: Segment) -> None:
    conn.execute(INSERT_SEGMENT, columns(segment))
    conn.executemany(
        INSERT_SEGMENT_STREAM,
        [
            (moved.streams[name], segment.object, span.first, span.last)
            for name, span in segment.streams.items()
        ],
    )
    if _changes(conn, USE_UPLOAD, [(segment.object,)]) != 1:
        raise ValueError(f"object {segment.object} was deleted meanwhile")


def _changes(conn: Connection, statement: str, rows: Sequence[Sequence[Any]]) -> int:
    """Run a statement for each row; how many rows of the table it changed."""
    before: int = conn.execute(sql.TOTAL_CHANGES).fetchone()[0]
    conn.executemany(statement, rows)
    after: int = conn.execute(sql.TOTAL_CHANGES).fetchone()[0]
    return after - before


def _row(moved: Moved, row: Row) -> tuple[Any, ...]:
    event, salt, leaf = row
    fields = list(astuple(event))
    fields[1], fields[3] = moved.streams[event.stream], moved.types[event.type]
    return (*fields, salt, leaf)


def select_catalog(conn: Connection, after: int, until: int, stream: str | None) -> Catalog:
    """Segments with events at ``after < position <= until``; one look, one snapshot."""
    if stream is None:
        rows = conn.execute(SELECT_SEGMENTS, (after, until)).fetchall()
    else:
        rows = conn.execute(SELECT_SEGMENTS_OF_STREAM, (stream, after, until)).fetchall()
    return catalog(rows)


def select_hot(
    conn: Connection,
    after: int,
    until: int,
    stream: str | None,
    types: Sequence[str] | None,
    limit: int,
) -> list[Row]:
    """Rows of the table with salt and leaf, as `sqlite_sql.select_events` selects events."""
    only = "" if types is None else sql.ONLY_TYPES.format(marks=", ".join("?" * len(types)))
    statement = (sql.SELECT_LOG_ROWS if stream is None else sql.SELECT_ROWS_IN_STREAM).format(
        types=only
    )
    head = () if stream is None else (stream,)
    rows = conn.execute(statement, (*head, after, until, *(types or ()), limit)).fetchall()
    return [(Event(*row[:11]), row[11], row[12]) for row in rows]


def select_spans(conn: Connection, object: str) -> Spans | None:
    """What the catalog says of a segment's streams."""
    return spans(conn.execute(SELECT_SPANS, (object,)).fetchall())


def select_uploads(conn: Connection) -> list[str]:
    """Objects that no segment refers to."""
    return [row[0] for row in conn.execute(SELECT_UPLOADS).fetchall()]

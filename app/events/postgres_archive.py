"""SQL of archived events in Postgres: moving rows out and back, and who may do so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
from msgspec.structs import astuple

from app.events import pg
from app.events.backend import Row
from app.events.ledger import Batch
from app.events.moves import ArchiveBusy, Move, Moved, columns
from app.events.segment import Segment

__all__ = ["archive_lock", "write_moves"]

INSERT_SEGMENT = """
    INSERT INTO segment (object, sha256, bytes, first, last, events, types)
    VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id"""

NOTE_UPLOAD = "INSERT INTO segment_upload (object, doomed) VALUES ($1, $2)"

DOOM_UPLOAD = "UPDATE segment_upload SET doomed = true WHERE object = $1 RETURNING object"

USE_UPLOAD = "DELETE FROM segment_upload WHERE object = $1 AND NOT doomed RETURNING object"

DELETE_UPLOAD = "DELETE FROM segment_upload WHERE object = $1"

# What is deleted is named by log, stream and position, and must have the salt that was archived.
DELETE_EVENTS = """
    WITH gone AS (
        DELETE FROM event e
        USING unnest($2::bigint[], $3::bigint[], $4::integer[], $5::bytea[])
            AS place(seq, stream_id, version, salt)
        WHERE (SELECT incarnation FROM log) = $1 AND e.seq = place.seq
            AND e.stream_id = place.stream_id AND e.version = place.version
            AND e.salt = place.salt
        RETURNING 1)
    SELECT count(*) FROM gone"""

DELETE_SEGMENT = """
    WITH gone AS (
        DELETE FROM segment
        WHERE (SELECT incarnation FROM log) = $1 AND object = $2 AND first = $3 AND last = $4
        RETURNING id), parts AS (
        DELETE FROM segment_stream WHERE segment_id = (SELECT id FROM gone))
    SELECT count(*) FROM gone"""

NEXT_GENERATION = "UPDATE archive SET generation = generation + 1"

LOCK = "SELECT pg_try_advisory_lock(hashtextextended('everlog.archive.' || current_schema(), 0))"

_SEGMENT = "s.object, s.sha256, s.bytes, s.first, s.last, s.events, s.types"

SELECT_SEGMENTS = f"""
    SELECT a.generation, {_SEGMENT}, s.first, s.last
    FROM archive a LEFT JOIN segment s ON s.last > $1 AND s.first <= $2 ORDER BY s.first"""

SELECT_SEGMENTS_OF_STREAM = f"""
    SELECT a.generation, {_SEGMENT}, p.first, p.last
    FROM archive a
    LEFT JOIN segment_stream p ON p.stream_id = (SELECT id FROM stream WHERE name = $3)
        AND p.last > $1 AND p.first <= $2
    LEFT JOIN segment s ON s.id = p.segment_id
    ORDER BY p.first"""

SELECT_SPANS = """
    SELECT n.name, p.first, p.last
    FROM segment s LEFT JOIN segment_stream p ON p.segment_id = s.id
    LEFT JOIN stream n ON n.id = p.stream_id WHERE s.object = $1"""

SELECT_UPLOADS = "SELECT object FROM segment_upload ORDER BY object"


async def write_moves(conn: Any, batch: Batch) -> None:
    """Write the moves and uploads of a batch, inside the caller's transaction.

    Raises:
        ValueError: An event or a segment is no longer what it was.

    """
    for moved in batch.moved:
        move = moved.move
        await _remove(conn, moved)
        await _drop(conn, move)
        if move.insert:
            rows = [_row(moved, row) for row in move.insert]
            await conn.copy_records_to_table("event", records=rows, columns=_COLUMNS)
        if move.add is not None:
            await _add(conn, moved, move.add)
        await conn.execute(NEXT_GENERATION)
    for upload in batch.uploads:
        if upload.state == "noted":
            await conn.execute(NOTE_UPLOAD, upload.object, False)
        elif upload.state == "gone":
            await conn.execute(DELETE_UPLOAD, upload.object)
        elif await conn.fetchval(DOOM_UPLOAD, upload.object) is None:
            raise ValueError(f"object {upload.object} is in use now")


async def _remove(conn: Any, moved: Moved) -> None:
    places = moved.move.remove
    if places:
        count = await conn.fetchval(
            DELETE_EVENTS,
            moved.move.log,
            [place.seq for place in places],
            [moved.streams[place.stream] for place in places],
            [place.version for place in places],
            [place.opening for place in places],
        )
        if count != len(places):
            raise ValueError("an event to be archived is no longer what it was")


async def _drop(conn: Any, move: Move) -> None:
    if move.drop is None:
        return
    drop = move.drop
    if not await conn.fetchval(DELETE_SEGMENT, move.log, drop.object, drop.first, drop.last):
        raise ValueError(f"segment {drop.object} is no longer what it was")
    await conn.execute(NOTE_UPLOAD, drop.object, True)


async def _add(conn: Any, moved: Moved, segment: Segment) -> None:
    id = await conn.fetchval(INSERT_SEGMENT, *columns(segment))
    spans = segment.streams.items()
    rows = [(moved.streams[name], id, span.first, span.last) for name, span in spans]
    names = ("stream_id", "segment_id", "first", "last")
    await conn.copy_records_to_table("segment_stream", records=rows, columns=names)
    if await conn.fetchval(USE_UPLOAD, segment.object) is None:
        raise ValueError(f"object {segment.object} was deleted meanwhile")


_COLUMNS = (
    *("seq", "stream_id", "version", "type_id", "schema", "time", "actor", "request", "run"),
    *("cause", "data", "salt", "leaf"),
)


def _row(moved: Moved, row: Row) -> tuple[Any, ...]:
    event, salt, leaf = row
    fields = list(astuple(event))
    fields[1], fields[3] = moved.streams[event.stream], moved.types[event.type]
    return (*fields, salt, leaf)


@asynccontextmanager
async def archive_lock(dsn: str) -> AsyncIterator[None]:
    """Hold the right to archive, against every other process on this log.

    Raises:
        ArchiveBusy: Another has it.
        StoreError: The database is away.

    """
    try:
        conn = await pg.connect(dsn, pg.ANSWER_SECONDS)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise pg.store_error(error) from error
    try:
        if not await conn.fetchval(LOCK):
            raise ArchiveBusy("another process is archiving", hint="try again later")
        yield
    finally:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
            await conn.close(timeout=2)  # not cut off: the lock is to be free at once

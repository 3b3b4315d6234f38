"""Logs that are long already: whole conversations, written as rows, leaves and all."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from app.events import catalogue as c
from app.events import pg
from app.events import sqlite_sql as sql
from app.events.codec import new
from app.events.envelope import NewEvent
from app.events.postgres import PostgresStore
from app.events.postgres_exclusive import _EVENT_COLUMNS
from app.events.sqlite import SqliteStore, execute_all

__all__ = ["BLOCK", "EVENTS", "STREAMS", "fill_postgres", "fill_sqlite", "like", "stream_name"]

STREAMS = 25
"""Conversations that are written side by side."""

EVENTS = 200
"""Events of a conversation."""

BLOCK = STREAMS * EVENTS
"""A log is made of blocks of so many events."""

AT_ONCE = 200
"""Blocks in one COPY."""

TEXT = "A few words, as long as the text of a batch of tokens is. " * 2
START = 1_764_000_000_000_000_000

#: Types by id; the events of a conversation are its first four, deltas, and its last two.
TYPES = (
    "thread.created",
    "message.posted",
    "run.started",
    "message.started",
    "message.delta",
    "message.completed",
    "run.completed",
)

Row = tuple[Any, ...]


def stream_name(id: int) -> str:
    """Name of a stream."""
    return f"thread/01900000-0000-7000-8000-{id:012x}"


def like() -> NewEvent:
    """An event that takes as much room as most of those in a filled log."""
    delta = c.MessageDelta(message="01900000-0001-7000-8000-000000000001", text=TEXT)
    return new(delta, actor="handler:bench", run="01900000-0003-7000-8000-000000000001")


def _payload(type: int, id: int) -> bytes:
    """What an event of a type (its id) says in a conversation."""
    answer, question = f"01900000-0001-7000-8000-{id:012x}", f"01900000-0002-7000-8000-{id:012x}"
    run = f"01900000-0003-7000-8000-{id:012x}"
    return (
        '{"owner":"local"}',
        f'{{"message":"{question}","role":"user","content":"Question {id}: {TEXT}"}}',
        f'{{"run":"{run}","hook":"on_message","node":"node","message":"{question}"}}',
        f'{{"message":"{answer}"}}',
        f'{{"message":"{answer}","text":"{TEXT}"}}',
        f'{{"message":"{answer}","content":"{TEXT}"}}',
        f'{{"run":"{run}"}}',
    )[type - 1].encode()


def _type(version: int) -> int:
    """Id of the type of the event at a version."""
    if version <= 4:
        return version
    return max(5, version - EVENTS + 7)


def block(number: int) -> Iterator[Row]:
    """The rows of a block, counted from 0, in order of ``seq``."""
    seq = number * BLOCK
    streams = []
    for at in range(STREAMS):
        id = number * STREAMS + at + 1
        run = f"01900000-0003-7000-8000-{id:012x}"
        payloads = [_payload(type, id) for type in range(1, len(TYPES) + 1)]
        streams.append((id, stream_name(id), run, payloads))
    salts = os.urandom(16 * BLOCK)
    for version in range(1, EVENTS + 1):
        type = _type(version)
        name = TYPES[type - 1]
        for id, stream, run, payloads in streams:
            seq += 1
            time, data = START + seq * 1_000_000, payloads[type - 1]
            at = (seq - 1) % BLOCK * 16
            salt = salts[at : at + 16]
            header = (
                f'[{seq},"{stream}",{version},"{name}",1,{time},"handler:bench",null,"{run}",null]'
            )
            leaf = sha256(header.encode() + sha256(salt + data).digest()).digest()
            yield (
                *(seq, id, version, type, 1, time),
                *("handler:bench", None, run, None, data, salt, leaf),
            )


def _streams(number: int) -> list[tuple[int, str]]:
    first = number * STREAMS + 1
    return [(id, stream_name(id)) for id in range(first, first + STREAMS)]


def fill_sqlite(path: Path, events: int) -> None:
    """Write a log of whole blocks into a new file. Syncs nothing: it is not what is measured.

    Not from a running event loop.
    """

    async def make() -> None:
        await (await SqliteStore.open(path, synchronous="normal")).aclose()

    asyncio.run(make())
    conn = sqlite3.connect(path, isolation_level=None)
    execute_all(conn, ["PRAGMA journal_mode = WAL", "PRAGMA synchronous = OFF"])
    conn.executemany(sql.INSERT_TYPE, list(enumerate(TYPES, 1)))
    for number in range(events // BLOCK):
        conn.execute("BEGIN")
        conn.executemany(sql.INSERT_STREAM, _streams(number))
        conn.executemany(sql.INSERT_EVENT, block(number))
        conn.execute("COMMIT")
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    conn.close()


async def fill_postgres(url: str, events: int) -> None:
    """Write a log of whole blocks into a new database by COPY."""
    await (await PostgresStore.open(url)).aclose()
    conn = await pg.connect(url, synchronous_commit="off", statement_timeout="0")
    copy = conn.copy_records_to_table
    await copy("event_type", records=list(enumerate(TYPES, 1)), columns=("id", "name"))
    for first in range(0, events // BLOCK, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, events // BLOCK))
        async with conn.transaction():
            streams = (stream for number in numbers for stream in _streams(number))
            await copy("stream", records=streams, columns=("id", "name"))
            rows = (row for number in numbers for row in block(number))
            await copy("event", records=rows, columns=_EVENT_COLUMNS)
    await conn.close()

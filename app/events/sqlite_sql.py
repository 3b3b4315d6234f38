"""All SQL of the SQLite store, and the functions that run it on a plain connection.

Everything here is synchronous and runs on a connection's own thread. The power-cut test runs the
same functions on a simulated disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from itertools import starmap
from typing import Any, Protocol

from msgspec.structs import astuple

from app.events.backend import Remembered, Row, event_rows
from app.events.envelope import Event
from app.events.ledger import Batch, Found, Missing, State
from app.events.queue import Request
from app.events.store import Lease, StoreError

__all__ = ["PRAGMAS", "insert_batch", "look_up", "read_state", "write_batch"]

#: Settings of the writing connection. ``{synchronous}`` is FULL or NORMAL.
PRAGMAS = (
    "PRAGMA busy_timeout = 5000",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = {synchronous}",
    "PRAGMA fullfsync = ON",  # macOS: fsync alone does not reach the disk
    "PRAGMA wal_autocheckpoint = 0",  # the writer checkpoints between batches
    "PRAGMA temp_store = MEMORY",
    "PRAGMA secure_delete = ON",  # what is overwritten or deleted leaves no copy in the file
)

READER_PRAGMAS = ("PRAGMA busy_timeout = 5000", "PRAGMA query_only = ON")

# ---------------------------------------------------------------------------------- writing

INSERT_EVENT = """
    INSERT INTO event (seq, stream_id, version, type_id, schema, time, actor, request, run, cause,
                       data, salt, leaf)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""

INSERT_STREAM = "INSERT INTO stream (id, name) VALUES (?, ?)"

INSERT_TYPE = "INSERT INTO event_type (id, name) VALUES (?, ?)"

UPSERT_REQUEST = """
    INSERT INTO request (id, stream, state, epoch, worker, until, priority, queued, model,
                         deadline, run, tenant)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET state = excluded.state, epoch = excluded.epoch,
        worker = excluded.worker, until = excluded.until"""

INSERT_COMMAND = "INSERT INTO command (id, seq, version, time) VALUES (?, ?, ?, ?)"

ERASE = "UPDATE event SET data = ?, salt = ? WHERE seq = ? AND stream_id = ? AND version = ?"

SELECT_COMMANDS = "SELECT id, seq, version, time FROM command WHERE id > ? ORDER BY id LIMIT ?"

PRUNE_COMMANDS = "DELETE FROM command WHERE time < ?"

INSERT_LOG = "INSERT OR IGNORE INTO log (id, incarnation, created) VALUES (1, ?, ?)"

ADOPT = "UPDATE log SET incarnation = ?"

ADOPT_IF_EMPTY = ADOPT + " WHERE NOT EXISTS (SELECT 1 FROM event)"

#: ``PRAGMA user_version`` of a backup: opened for writing, it begins a new life (incarnation).
BACKUP = 1

TOTAL_CHANGES = "SELECT total_changes()"

# ------------------------------------------------------------------------- end of the log

SELECT_INCARNATION = "SELECT incarnation FROM log"

SELECT_HEAD = "SELECT coalesce(max(seq), 0) FROM event"

SELECT_LAST_STREAM = "SELECT coalesce(max(id), 0) FROM stream"

SELECT_TYPES = "SELECT name, id FROM event_type"

REQUEST_COLUMNS = (
    "id, stream, state, epoch, worker, until, priority, queued, model, deadline, run, tenant"
)

SELECT_OPEN_REQUESTS = f"""
    SELECT {REQUEST_COLUMNS} FROM request
    WHERE state NOT IN ('finished', 'failed', 'cancelled') ORDER BY queued"""

SELECT_REQUEST = f"SELECT {REQUEST_COLUMNS} FROM request WHERE id = ?"

SELECT_STREAM = """
    SELECT s.id, coalesce((SELECT max(version) FROM event WHERE stream_id = s.id), 0)
    FROM stream s WHERE s.name = ?"""

SELECT_VERSION = """
    SELECT coalesce(max(version), 0) FROM event
    WHERE stream_id = (SELECT id FROM stream WHERE name = ?)"""

SELECT_COMMAND = "SELECT seq, version FROM command WHERE id = ?"

# ---------------------------------------------------------------------------------- reading

_EVENT = """
    SELECT e.seq, s.name, e.version, t.name, e.schema, e.time, e.actor, e.request, e.run, e.cause,
           e.data{extra}
    FROM event e
    {join} JOIN stream s ON s.id = e.stream_id
    {join} JOIN event_type t ON t.id = e.type_id"""

_COLUMNS = _EVENT.format(extra="", join="CROSS")  # CROSS: SQLite must begin with `event`

_ROW_COLUMNS = _EVENT.format(extra=", e.salt, e.leaf", join="CROSS")

_BY_SEQ = " WHERE e.seq > ? AND e.seq <= ?{types} ORDER BY e.seq LIMIT ?"

_BY_VERSION = """ WHERE e.stream_id = (SELECT id FROM stream WHERE name = ?)
    AND e.version > ? AND e.version <= ?{types} ORDER BY e.version LIMIT ?"""

SELECT_LOG = _COLUMNS + _BY_SEQ

SELECT_IN_STREAM = _COLUMNS + _BY_VERSION

SELECT_LOG_ROWS = _ROW_COLUMNS + _BY_SEQ

SELECT_ROWS_IN_STREAM = _ROW_COLUMNS + _BY_VERSION

ONLY_TYPES = " AND e.type_id IN (SELECT id FROM event_type WHERE name IN ({marks}))"

# LEFT: a row whose stream or type is gone must be seen, not skipped.
SELECT_ROWS = (
    _EVENT.format(extra=", e.salt, e.leaf", join="LEFT") + " WHERE e.seq > ? ORDER BY e.seq LIMIT ?"
)

SELECT_ROW = _EVENT.format(extra=", e.salt, e.leaf", join="LEFT") + " WHERE e.seq = ?"

# SQLite makes a header's JSON: for nearly all rows just what msgspec makes of it.
SELECT_SOUND = """
    SELECT e.leaf,
           CAST(json_array(e.seq, s.name, e.version, t.name, e.schema, e.time, e.actor, e.request,
                           e.run, e.cause) AS BLOB),
           CAST(e.salt || e.data AS BLOB)
    FROM event e
    CROSS JOIN stream s ON s.id = e.stream_id
    CROSS JOIN event_type t ON t.id = e.type_id
    WHERE e.seq > ? AND e.seq <= ? AND length(e.salt) = 16 ORDER BY e.seq"""

SELECT_LEAVES = "SELECT leaf FROM event WHERE seq > ? AND seq <= ? ORDER BY seq"

SELECT_LEASES = """
    SELECT id, stream, state, epoch, worker, until FROM request
    WHERE (?1 IS NULL OR stream = ?1)
    AND (NOT ?2 OR state NOT IN ('finished', 'failed', 'cancelled')) ORDER BY queued"""


COUNT_WAITING = """
    SELECT count(*) FILTER (WHERE tenant = ?), count(*) FROM request
    WHERE state NOT IN ('finished', 'failed', 'cancelled') AND state = 'queued'"""


class Connection(Protocol):
    """What is used of a database connection (``sqlite3`` and ``apsw`` both fit)."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Any:
        """Run one statement."""
        ...

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Any:
        """Run one statement for each row."""
        ...


def insert_batch(conn: Connection, batch: Batch) -> None:
    """Insert what a batch writes, inside the caller's transaction."""
    if batch.streams:
        conn.executemany(INSERT_STREAM, batch.streams)
    if batch.types:
        conn.executemany(INSERT_TYPE, batch.types)
    if batch.events:
        conn.executemany(INSERT_EVENT, event_rows(batch))
    if batch.requests:
        conn.executemany(UPSERT_REQUEST, [astuple(r) for r in batch.requests.values()])
    if batch.commands:
        conn.executemany(INSERT_COMMAND, [(id, *row) for id, row in batch.commands.items()])
    if batch.erased:
        _erase(conn, batch)


def _erase(conn: Connection, batch: Batch) -> None:
    """Overwrite payloads.

    Raises:
        ValueError: One of them is no longer where it was.

    """
    before = conn.execute(TOTAL_CHANGES).fetchone()[0]
    rows = [(e.left, e.opening, e.seq, stream, e.version) for e, stream in batch.erased]
    conn.executemany(ERASE, rows)
    if conn.execute(TOTAL_CHANGES).fetchone()[0] - before != len(rows):
        raise ValueError("an event to be erased is no longer where it was")


def write_batch(
    conn: Connection, batch: Batch, also: Callable[[Connection, Batch], None] | None = None
) -> None:
    """Write a batch in one transaction; it is durable when this returns.

    ``also`` writes in the same transaction.
    """
    conn.execute("BEGIN IMMEDIATE")
    try:
        insert_batch(conn, batch)
        if also is not None:
            also(conn, batch)
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:  # type: ignore[attr-defined]
            conn.execute("ROLLBACK")
        raise


def read_state(conn: Connection) -> State:
    """Read the end of the log."""
    return State(
        head=conn.execute(SELECT_HEAD).fetchone()[0],
        last_stream=conn.execute(SELECT_LAST_STREAM).fetchone()[0],
        types=dict(conn.execute(SELECT_TYPES).fetchall()),
        requests=[Request(*row) for row in conn.execute(SELECT_OPEN_REQUESTS).fetchall()],
    )


def look_up(conn: Connection, missing: Missing) -> Found:
    """Look up what the ledger does not know."""
    found = Found()
    for name in missing.streams:
        row = conn.execute(SELECT_STREAM, (name,)).fetchone()
        if row is not None:
            found.streams[name] = row
    for id in missing.requests:
        row = conn.execute(SELECT_REQUEST, (id,)).fetchone()
        if row is not None:
            found.requests[id] = Request(*row)
    for id in missing.commands:
        row = conn.execute(SELECT_COMMAND, (id,)).fetchone()
        if row is not None:
            found.commands[id] = row
    return found


def select_events(
    conn: Connection,
    after: int,
    until: int,
    stream: str | None,
    types: Sequence[str] | None,
    limit: int,
) -> list[Event]:
    """Events with ``after < position <= until`` in order."""
    only = "" if types is None else ONLY_TYPES.format(marks=", ".join("?" * len(types)))
    sql = (SELECT_LOG if stream is None else SELECT_IN_STREAM).format(types=only)
    head = () if stream is None else (stream,)
    rows = conn.execute(sql, (*head, after, until, *(types or ()), limit))
    return list(starmap(Event, rows))


def select_leaves(conn: Connection, after: int, until: int) -> list[bytes]:
    """Leaf hashes of ``after < seq <= until``."""
    return [row[0] for row in conn.execute(SELECT_LEAVES, (after, until)).fetchall()]


def select_sound(conn: sqlite3.Connection, after: int, until: int) -> list[bytes] | None:
    """Leaf hashes of ``after < seq <= until`` if every row has its own; None if any may not.

    Rows that are erased or damaged, or whose JSON SQLite writes in another way, give None.
    """
    try:
        rows = conn.execute(SELECT_SOUND, (after, until)).fetchall()
    except sqlite3.DatabaseError:
        return None
    stored = [row[0] for row in rows]
    found = [sha256(header + sha256(salted).digest()).digest() for _, header, salted in rows]
    return stored if found == stored and len(rows) == until - after else None


def select_leases(conn: Connection, stream: str | None, open_only: bool) -> list[Lease]:
    """Rows of the request table, oldest first."""
    rows = conn.execute(SELECT_LEASES, (stream, open_only)).fetchall()
    return [Lease(*row) for row in rows]


def count_waiting(conn: Connection, tenant: str) -> tuple[int, int]:
    """How many requests are queued: of a tenant, and in all."""
    own, total = conn.execute(COUNT_WAITING, (tenant,)).fetchall()[0]
    return own, total


def select_commands(conn: Connection, after: str, limit: int) -> list[Remembered]:
    """Commands that took effect lately, ordered by id."""
    found: list[Remembered] = conn.execute(SELECT_COMMANDS, (after, limit)).fetchall()
    return found


def select_rows(conn: sqlite3.Connection, after: int, limit: int) -> list[Row | StoreError]:
    """Rows as stored, with salt and leaf; a `StoreError` in place of each unreadable one."""
    try:
        return _select_rows(conn, after, limit)
    except sqlite3.DatabaseError:
        conn.text_factory = _decode  # broken UTF-8 must not hide the rest of the page
    try:
        return _select_rows(conn, after, limit)
    except sqlite3.DatabaseError:
        return [_select_row(conn, seq) for seq in range(after + 1, after + 1 + limit)]
    finally:
        conn.text_factory = str


def _select_rows(conn: sqlite3.Connection, after: int, limit: int) -> list[Row | StoreError]:
    found = conn.execute(SELECT_ROWS, (after, limit)).fetchall()
    return [(Event(*row[:11]), row[11], row[12]) for row in found]


def _select_row(conn: sqlite3.Connection, seq: int) -> Row | StoreError:
    try:
        row = conn.execute(SELECT_ROW, (seq,)).fetchone()
    except sqlite3.DatabaseError as error:
        return StoreError(str(error))
    if row is None:
        return StoreError("it is not where it should be")
    return (Event(*row[:11]), row[11], row[12])


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")


def integrity(conn: Connection) -> list[str]:
    """Complaints of SQLite about the file's structure."""
    rows = conn.execute("PRAGMA integrity_check(20)").fetchall()
    return [row[0] for row in rows if row[0] != "ok"]

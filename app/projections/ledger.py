"""The file of the read models: its connections, and the ledger of what each projection has folded.

The file is separate from the log, so that the log keeps exactly one writing connection; it can be
deleted at any time. ``synchronous=NORMAL`` in WAL mode may lose the last transactions in a power
cut, never a part of one: rows and checkpoint go back together, and the fold goes on from there.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from app.errors import EverlogError, StartupError
from app.projections.projection import Projection

__all__ = [
    "Position",
    "beat",
    "connect",
    "create",
    "drop",
    "halt",
    "move",
    "next_generation",
    "point",
    "position",
    "prepare",
    "release",
    "take",
    "transaction",
]

APPLICATION = 0x45564C56
BUSY_SECONDS = 30.0

_DDL = """
CREATE TABLE IF NOT EXISTS projection (
    name        TEXT PRIMARY KEY,
    generation  INTEGER NOT NULL,   -- prefix of the tables that serve
    version     INTEGER NOT NULL,   -- of the code that folded them
    incarnation TEXT NOT NULL,      -- of the log they were folded from
    seq         INTEGER NOT NULL,   -- last event in them
    error       TEXT,               -- why it stands still; NULL while it runs
    updated     INTEGER NOT NULL    -- ns since the epoch
) STRICT;
CREATE TABLE IF NOT EXISTS rebuild (
    name        TEXT PRIMARY KEY,
    token       TEXT NOT NULL,      -- of the rebuild that owns the new generation
    generation  INTEGER NOT NULL,
    beat        INTEGER NOT NULL    -- ns since the epoch, of its last batch
) STRICT;
"""


class Position(msgspec.Struct, frozen=True):
    """Where a projection stands: the ledger's row."""

    generation: int
    version: int
    incarnation: str
    seq: int
    error: str | None


def connect(path: str, *, readonly: bool = False) -> sqlite3.Connection:
    """Open the read models' file, creating it unless ``readonly``.

    Transactions are explicit. The connection may move between threads, one at a time.

    Raises:
        StartupError: The file cannot be opened, or is something else.

    """
    try:
        connection = sqlite3.connect(
            path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False
        )
        if readonly:
            connection.execute("PRAGMA query_only = ON")
            return connection
        _claim(connection, path)
    except sqlite3.Error as error:
        raise StartupError(
            f"cannot open the read models in {path}: {error}",
            hint="The file holds nothing that the log does not: delete it and start again.",
        ) from error
    return connection


def _claim(connection: sqlite3.Connection, path: str) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION and tables:
        raise StartupError(
            f"{path} is a database, but not one of Everlog's read models",
            hint="Name another file for the read models.",
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    if application != APPLICATION:
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
    if not tables:
        connection.executescript(_DDL)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Hold the file's write lock; commit at the end, or roll back on an error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors (disk full).
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def position(connection: sqlite3.Connection, name: str) -> Position | None:
    """Read where a projection stands; None if it has never run."""
    row = connection.execute(
        "SELECT generation, version, incarnation, seq, error FROM projection WHERE name = ?",
        (name,),
    ).fetchone()
    return Position(*row) if row is not None else None


def point(
    connection: sqlite3.Connection,
    projection: Projection,
    *,
    generation: int,
    incarnation: str,
    seq: int,
) -> None:
    """Let a generation serve."""
    connection.execute(
        "INSERT OR REPLACE INTO projection VALUES (?, ?, ?, ?, ?, NULL, ?)",
        (projection.name, generation, projection.version, incarnation, seq, time.time_ns()),
    )


def move(connection: sqlite3.Connection, name: str, seq: int) -> None:
    """Set a checkpoint."""
    connection.execute(
        "UPDATE projection SET seq = ?, updated = ? WHERE name = ?", (seq, time.time_ns(), name)
    )


def halt(connection: sqlite3.Connection, name: str, error: str | None) -> None:
    """Note why a projection stands still; None: it runs."""
    connection.execute("UPDATE projection SET error = ? WHERE name = ?", (error, name))


def create(connection: sqlite3.Connection, projection: Projection, generation: int) -> None:
    """Create the tables of a generation."""
    for statement in projection.ddl(generation):
        connection.execute(statement)


def drop(connection: sqlite3.Connection, prefix: str) -> None:
    """Drop all tables of a generation, whatever version made them."""
    query = (
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND substr(name, 1, ?) = ?"
        " AND sql LIKE ?"
    )
    # Virtual tables first: dropping one drops its shadow tables, which cannot be dropped directly.
    for like in ("CREATE VIRTUAL%", "CREATE%"):
        found: list[Any] = connection.execute(query, (len(prefix), prefix, like)).fetchall()
        for (name,) in found:
            connection.execute(f'DROP TABLE IF EXISTS "{name}"')


def prepare(
    connection: sqlite3.Connection,
    projection: Projection,
    *,
    seen: Position | None,
    incarnation: str,
    head: int,
) -> str | None:
    """Make a projection ready to fold on; start it over where its rows cannot be used.

    Call inside a transaction. ``seen`` is its position as read before ``head`` was.

    Returns:
        Why it starts over, or None.

    """
    now = position(connection, projection.name)
    if now is None:
        reason: str | None = "it is new"
    elif now.incarnation != incarnation:
        reason = "the log is another one"
    elif now.version != projection.version:
        reason = f"its rows are of version {now.version}, the code is of {projection.version}"
    elif seen is not None and seen.seq > head and now.seq >= seen.seq:
        reason = f"it has seen event {seen.seq}, the log ends at {head}"
    else:
        reason = None
        halt(connection, projection.name, None)
    if reason is not None:
        generation = next_generation(connection, projection.name)
        if now is not None:
            drop(connection, projection.prefix(now.generation))
        create(connection, projection, generation)
        point(connection, projection, generation=generation, incarnation=incarnation, seq=0)
    return reason


def next_generation(connection: sqlite3.Connection, name: str) -> int:
    """A generation number that no table has."""
    (used,) = connection.execute(
        "SELECT max((SELECT coalesce(max(generation), 0) FROM projection WHERE name = ?),"
        " (SELECT coalesce(max(generation), 0) FROM rebuild WHERE name = ?))",
        (name, name),
    ).fetchone()
    return int(used) + 1


def take(
    connection: sqlite3.Connection, projection: Projection, token: str, *, stale: float
) -> int:
    """Begin a new generation beside the one that serves, in the caller's transaction.

    Tables of a rebuild that died (no batch for ``stale`` seconds) are dropped.

    Raises:
        EverlogError: Another rebuild is at work.

    """
    row = connection.execute(
        "SELECT generation, beat FROM rebuild WHERE name = ?", (projection.name,)
    ).fetchone()
    generation = next_generation(connection, projection.name)
    if row is not None:
        idle = (time.time_ns() - row[1]) / 1e9
        if idle < stale:
            raise EverlogError(
                f"{projection.name} is being rebuilt by another process",
                hint=f"Wait for it. If it was killed, try again in {stale - idle:.0f} s.",
            )
        drop(connection, projection.prefix(row[0]))
    create(connection, projection, generation)
    connection.execute(
        "INSERT OR REPLACE INTO rebuild VALUES (?, ?, ?, ?)",
        (projection.name, token, generation, time.time_ns()),
    )
    return generation


def beat(connection: sqlite3.Connection, name: str, token: str) -> None:
    """Show that a rebuild is alive.

    Raises:
        EverlogError: Another rebuild has taken its place.

    """
    done = connection.execute(
        "UPDATE rebuild SET beat = ? WHERE name = ? AND token = ?", (time.time_ns(), name, token)
    )
    if done.rowcount != 1:
        raise EverlogError(f"another rebuild of {name} has taken the place of this one")


def release(connection: sqlite3.Connection, name: str, token: str) -> bool:
    """Forget a rebuild; whether it was still ours."""
    query = "DELETE FROM rebuild WHERE name = ? AND token = ?"
    return connection.execute(query, (name, token)).rowcount == 1

"""Migrations: numbered SQL files, applied once, forward only, checked by their checksum."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import msgspec

from app.errors import StartupError
from app.events.lockfile import WriterLock
from app.events.sqlite_errors import database_uri, startup_errors
from app.events.url import database_path

__all__ = ["Migration", "apply", "migrate", "migrations", "outstanding", "pending", "statements"]

_NAME = re.compile(r"(\d{4})_(\w+)\.sql")

_CREATE_TABLE = """
    CREATE TABLE IF NOT EXISTS schema_migration (
        number  INTEGER PRIMARY KEY,
        name    TEXT    NOT NULL,
        sha256  TEXT    NOT NULL,
        applied INTEGER NOT NULL
    ) STRICT"""


class Migration(msgspec.Struct, frozen=True):
    """One file: ``0001_log.sql`` has number 1 and name ``log``."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Checksum of the text."""
        return sha256(self.sql.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.number:04}_{self.name}"


def migrations(dialect: str = "sqlite", directory: Path | None = None) -> list[Migration]:
    """Read the migrations of a dialect in order.

    They lie in ``migrations/`` of a checkout, or in ``app/migrations/`` of an installed package.

    Raises:
        StartupError: The files are missing, or their numbers are not 1, 2, 3 ...

    """
    directory = directory or _directory(dialect)
    found = []
    for path in sorted(directory.glob("*.sql")):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append(Migration(int(match[1]), match[2], path.read_text("utf-8")))
    if not found or [m.number for m in found] != list(range(1, len(found) + 1)):
        raise StartupError(
            f"migrations in {directory} are not numbered 0001, 0002 ... without a gap",
            hint="reinstall everlog",
        )
    return found


def _directory(dialect: str) -> Path:
    app = Path(__file__).resolve().parent.parent
    for base in (app / "migrations", app.parent / "migrations"):
        if (base / dialect).is_dir():
            return base / dialect
    raise StartupError("the database migrations are missing", hint="reinstall everlog")


def outstanding(conn: sqlite3.Connection, wanted: list[Migration]) -> list[Migration]:
    """Compare a database with the migrations and return those not applied.

    Raises:
        StartupError: An applied migration was changed, or is newer than this code.

    """
    exists = conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'schema_migration'").fetchone()
    if exists is None:
        return wanted
    rows = conn.execute("SELECT number, name, sha256 FROM schema_migration ORDER BY number")
    applied = {number: (name, digest) for number, name, digest in rows.fetchall()}
    known = {migration.number: migration for migration in wanted}
    for number, (name, digest) in applied.items():
        migration = known.get(number)
        if migration is None:
            raise StartupError(
                f"the database has migration {number:04}_{name}, which this version does not know",
                hint="it was written by a newer everlog: install that version or a later one",
            )
        if migration.sha256 != digest:
            raise StartupError(
                f"migration {migration} was changed after it was applied",
                hint="restore the original file; put changes into a new migration",
            )
    return [migration for migration in wanted if migration.number not in applied]


def apply(conn: sqlite3.Connection, wanted: list[Migration]) -> list[Migration]:
    """Apply what is outstanding under the database's write lock, all or none.

    Args:
        conn: A connection in autocommit mode (``isolation_level=None``).
        wanted: All migrations.

    Returns:
        The migrations applied now.

    """
    if not outstanding(conn, wanted):
        return []
    conn.execute("BEGIN IMMEDIATE")
    try:
        conn.execute(_CREATE_TABLE)
        pending = outstanding(conn, wanted)  # again: another process may have been faster
        for migration in pending:
            for statement in statements(migration.sql):
                conn.execute(statement)
            conn.execute(
                "INSERT INTO schema_migration VALUES (?, ?, ?, ?)",
                (migration.number, migration.name, migration.sha256, time.time_ns()),
            )
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise
    return pending


def pending(url: str) -> list[Migration]:
    """List the migrations a database lacks, without changing it.

    Raises:
        InputError: The URL is malformed.
        StartupError: The database cannot be read, or disagrees with the migrations.

    """
    path = database_path(url)
    if path is None:
        return []
    wanted = migrations("sqlite")
    if not path.exists():
        return wanted
    with startup_errors(path), closing(_connect(path, "ro")) as conn:
        return outstanding(conn, wanted)


def migrate(url: str) -> list[Migration]:
    """Create a database or bring it up to date; returns what was applied.

    Raises:
        InputError: The URL is malformed.
        StartupError: A server is using the database, or it cannot be written.

    """
    path = database_path(url)
    if path is None:
        return []
    lock = WriterLock(path)
    lock.acquire()
    try:
        with startup_errors(path), closing(_connect(path, "rwc")) as conn:
            return apply(conn, migrations("sqlite"))
    finally:
        lock.release()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(database_uri(path, mode), uri=True, isolation_level=None)


def statements(sql: str) -> Iterator[str]:
    """Split a script at the semicolons that end a statement (triggers stay whole)."""
    current = ""
    for part in sql.split(";"):
        current += part + ";"
        if sqlite3.complete_statement(current):
            if current.strip(" \n\t;"):
                yield current.strip()
            current = ""

"""Bring a database's schema up to date."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from app.errors import StartupError
from app.events.lockfile import WriterLock
from app.events.migration import Migration, compare, migrations
from app.events.sqlite_errors import database_uri, startup_errors
from app.events.url import parse_url

__all__ = ["apply", "migrate", "outstanding", "pending", "statements"]

_CREATE_TABLE = """
    CREATE TABLE IF NOT EXISTS schema_migration (
        number  INTEGER PRIMARY KEY,
        name    TEXT    NOT NULL,
        sha256  TEXT    NOT NULL,
        applied INTEGER NOT NULL
    ) STRICT"""


def outstanding(conn: sqlite3.Connection, wanted: list[Migration]) -> list[Migration]:
    """Compare a database with the migrations and return those not applied.

    Raises:
        StartupError: An applied migration was changed, or is newer than this code, or the
            database is another program's.

    """
    tables = {name for (name,) in conn.execute("SELECT name FROM sqlite_master")}
    if "schema_migration" not in tables:
        if tables:
            raise StartupError(
                f"the database holds no log, but something else (such as {min(tables)!r})",
                hint="Everlog needs a file of its own: choose another with database.url",
            )
        return wanted
    rows = conn.execute("SELECT number, name, sha256 FROM schema_migration ORDER BY number")
    return compare(rows.fetchall(), wanted)


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
    """List the migrations a database lacks, without changing it. Not from a running event loop.

    Raises:
        InputError: The URL is malformed.
        StartupError: The database cannot be read, or disagrees with the migrations.

    """
    database = parse_url(url)
    if database.dsn is not None:
        from app.events import postgres_migrate  # asyncpg is slow to import

        return asyncio.run(postgres_migrate.pending(database.dsn, migrations("postgres")))
    path = database.path
    if path is None:
        return []
    wanted = migrations("sqlite")
    if not path.exists():
        return wanted
    with startup_errors(path), closing(_connect(path, "ro")) as conn:
        return outstanding(conn, wanted)


def migrate(url: str) -> list[Migration]:
    """Bring a database up to date (and create a SQLite one); returns what was applied.

    Not from a running event loop.

    Raises:
        InputError: The URL is malformed.
        StartupError: A server is using the database, or it cannot be written.

    """
    database = parse_url(url)
    if database.dsn is not None:
        from app.events import postgres_migrate  # asyncpg is slow to import

        return asyncio.run(postgres_migrate.migrate(database.dsn, migrations("postgres")))
    path = database.path
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

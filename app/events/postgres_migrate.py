"""Bring a Postgres schema up to date. Nodes that start together take turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.errors import StartupError
from app.events import pg
from app.events.migration import Migration, compare

__all__ = ["apply", "migrate", "outstanding", "pending", "refuse_old_server"]

_CREATE_TABLE = """
    CREATE TABLE IF NOT EXISTS schema_migration (
        number  integer PRIMARY KEY,
        name    text    NOT NULL,
        sha256  text    NOT NULL,
        applied timestamptz NOT NULL DEFAULT now()
    )"""

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('everlog.migrate.' || current_schema(), 0))"


def refuse_old_server(conn: Any) -> None:
    """Refuse a server older than Postgres 15.

    Raises:
        StartupError: It is.

    """
    version = conn.get_server_version()
    if version.major < pg.MINIMUM // 10_000:
        raise StartupError(
            f"the server is Postgres {version.major}", hint="Everlog needs Postgres 15 or newer."
        )


async def outstanding(conn: Any, wanted: Sequence[Migration]) -> list[Migration]:
    """Compare a database with the migrations and return those not applied.

    Raises:
        StartupError: An applied migration was changed, or is newer than this code.

    """
    if await conn.fetchval("SELECT current_schema()") is None:
        raise StartupError(
            "the search_path names no schema that exists", hint="Create it: CREATE SCHEMA ..."
        )
    exists = await conn.fetchval(
        "SELECT to_regclass(quote_ident(current_schema()) || '.schema_migration')"
    )
    if exists is None:
        return list(wanted)
    rows = await conn.fetch("SELECT number, name, sha256 FROM schema_migration ORDER BY number")
    return compare([tuple(row) for row in rows], wanted)


async def apply(conn: Any, wanted: Sequence[Migration]) -> list[Migration]:
    """Apply what is outstanding, all or none; returns the migrations applied now."""
    if not await outstanding(conn, wanted):
        return []
    async with conn.transaction():
        await conn.execute("SET LOCAL statement_timeout = 0")
        await conn.execute("SET LOCAL lock_timeout = 0")
        await conn.execute(_LOCK)
        await conn.execute(_CREATE_TABLE)
        lacking = await outstanding(conn, wanted)  # again: another node may have been faster
        for migration in lacking:
            await conn.execute(migration.sql)
            await conn.execute(
                "INSERT INTO schema_migration (number, name, sha256) VALUES ($1, $2, $3)",
                migration.number,
                migration.name,
                migration.sha256,
            )
    return lacking


async def pending(dsn: str, wanted: Sequence[Migration]) -> list[Migration]:
    """List the migrations a database lacks, without changing it."""
    return await _with(dsn, outstanding, wanted)


async def migrate(dsn: str, wanted: Sequence[Migration]) -> list[Migration]:
    """Bring a database up to date; returns what was applied."""
    return await _with(dsn, apply, wanted)


async def _with(dsn: str, work: Any, wanted: Sequence[Migration]) -> list[Migration]:
    try:
        conn = await pg.connect(dsn)
        try:
            refuse_old_server(conn)
            found: list[Migration] = await work(conn, wanted)
            return found
        finally:
            await conn.close()
    except Exception as error:
        raise pg.startup_error(dsn, error) from error

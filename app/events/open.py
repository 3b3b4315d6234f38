"""Open the log that the settings, or a database URL, name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.config import Config
from app.events.logstore import LogStore
from app.events.memory import MemoryStore
from app.events.objects import Objects, open_objects
from app.events.sqlite import SqliteStore, Synchronous
from app.events.through import CACHE
from app.events.url import Database, database_path, parse_url

__all__ = ["database_path", "open_log", "open_store"]


@asynccontextmanager
async def open_log(
    config: Config, *, read_only: bool = False
) -> AsyncIterator[tuple[LogStore, Objects]]:
    """Open the log of the settings and the place of its objects, for the time of a ``with`` block.

    Args:
        config: All settings.
        read_only: Read and follow only, while another process may write.

    Raises:
        InputError: A URL is malformed (field ``database.url`` or ``objects.url``).
        StartupError: The database cannot be opened.

    """
    database = config.database
    async with (
        open_objects(config) as objects,
        open_store(
            database.url,
            synchronous=database.synchronous,
            read_only=read_only,
            objects=objects,
            cache=config.archive.cache,
            pool=database.pool,
        ) as store,
    ):
        yield store, objects


@asynccontextmanager
async def open_store(
    url: str,
    *,
    synchronous: Synchronous = "full",
    read_only: bool = False,
    objects: Objects | None = None,
    cache: int = CACHE,
    pool: int = 8,
) -> AsyncIterator[LogStore]:
    """Open a log for the time of a ``with`` block.

    Args:
        url: See `database_path`.
        synchronous: See `SqliteStore.open`.
        read_only: Read and follow only, while another process may write.
        objects: Where archived events are; without it, reading one raises `StoreError`.
        cache: Bytes of archived events to keep in memory.
        pool: Postgres: most connections for reading.

    Raises:
        InputError: The URL is malformed (field ``database.url``).
        StartupError: The database cannot be opened.

    """
    database = parse_url(url)
    if database.kind == "memory":
        async with MemoryStore() as memory:
            if objects is not None:
                memory.attach(objects, cache=cache)
            yield memory
        return
    store = await _open(database, synchronous, read_only, pool)
    if objects is not None:
        store.attach(objects, cache=cache)
    try:
        yield store
    finally:
        await store.aclose()


async def _open(
    database: Database, synchronous: Synchronous, read_only: bool, pool: int
) -> LogStore:
    if database.dsn is not None:
        from app.events.postgres import PostgresStore  # asyncpg is slow to import

        return await PostgresStore.open(
            database.dsn, synchronous=synchronous, read_only=read_only, pool=pool
        )
    assert database.path is not None
    return await SqliteStore.open(database.path, synchronous=synchronous, read_only=read_only)

"""The stores that must keep the contract, each with a small ring so that both ways of reading run.

To add a store: add its name to `STORES` and a branch to `open_named`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from app.events.feed import Feed
from app.events.memory import MemoryStore
from app.events.postgres import PostgresStore
from app.events.sqlite import SqliteStore
from app.events.store import EventStore
from tests.contract.support import Clock
from tests.support.postgres import Cluster, new_database

STORES = ("memory", "sqlite", "postgres")
PERSISTENT = ("sqlite", "postgres")

Open = Callable[..., AbstractAsyncContextManager[EventStore]]


@asynccontextmanager
async def open_named(
    name: str, directory: Path, *, clock: Clock | None = None, ring: int = 50
) -> AsyncIterator[EventStore]:
    """Open the log of kind ``name`` that lives in ``directory``."""
    feed = Feed(max_events=ring)
    clock = clock or Clock()
    if name == "memory":
        async with MemoryStore(feed=feed, clock=clock) as memory:
            yield memory
    elif name == "postgres":
        postgres = await PostgresStore.open(await database_of(directory), feed=feed, clock=clock)
        try:
            yield postgres
        finally:
            await postgres.aclose()
    else:
        path = directory / "log.db"
        sqlite = await SqliteStore.open(path, synchronous="normal", feed=feed, clock=clock)
        try:
            yield sqlite
        finally:
            await sqlite.aclose()


_databases: dict[Path, str] = {}
_clusters: list[Cluster] = []


async def database_of(directory: Path) -> str:
    """URL of the database that belongs to a directory, made at the first call."""
    if directory not in _databases:
        _databases[directory] = await new_database(_clusters[-1])
    return _databases[directory]


@pytest.fixture(scope="session", autouse=True)
def use_postgres(postgres: Cluster) -> None:
    """Let `open_named` find the server, also where a test class cannot take fixtures."""
    _clusters.append(postgres)


@pytest.fixture(params=STORES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_log(kind: str, tmp_path: Path) -> Open:
    """Open the test's log; again and again for stores that persist."""

    def open_log(**options: object) -> AbstractAsyncContextManager[EventStore]:
        return open_named(kind, tmp_path, **options)  # type: ignore[arg-type]

    return open_log


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(open_log: Open, clock: Clock) -> AsyncIterator[EventStore]:
    async with open_log(clock=clock) as store:
        yield store

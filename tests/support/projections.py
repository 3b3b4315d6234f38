"""Compare read models row by row with what a rebuild from the first event gives."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode
from uuid import uuid4

import asyncpg

from app.events.store import EventStore
from app.projections import ledger
from app.projections.database import Connection, Where, connect, is_postgres
from app.projections.rebuild import rebuild
from app.projections.views import PROJECTIONS, Views, named

__all__ = ["apart", "assert_rebuild_equals_live", "dump", "new_schema"]

T = TypeVar("T")
Dump = dict[str, list[tuple[Any, ...]]]


def apart(function: Callable[..., T], *args: object) -> T:
    """Call a function that blocks, in a thread without an event loop."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function, *args).result()


def dump(where: Where) -> Dump:
    """All rows of the tables that serve, by name without generation; search indexes checked."""
    return apart(_dump, where)


def _dump(where: Where) -> Dump:
    connection = ledger.open_ledger(where)
    try:
        tables: Dump = {}
        with connection.transaction():
            for name in PROJECTIONS:
                position = ledger.position(connection, name)
                assert position is not None, f"{name} has never run"
                assert position.error is None, f"{name} stands still: {position.error}"
                tables[f"{name} seq"] = [(position.seq,)]
                tables |= _tables(connection, f"{name}_{position.generation}_", name)
        return tables
    finally:
        connection.close()


def _tables(connection: Connection, prefix: str, name: str) -> Dump:
    found = connection.tables(prefix)
    assert found, f"{name} has no tables"
    tables: Dump = {}
    for table in found:
        if table.endswith("_search"):  # raises unless the index says what the indexed table says
            connection.run(f"INSERT INTO {table} ({table}, rank) VALUES ('integrity-check', 1)")
        if not re.search("_search(_[a-z]+)?$", table):
            rows = connection.all(f"SELECT * FROM {table}")
            tables[f"{name} {table.removeprefix(prefix)}"] = sorted(rows, key=repr)
    return tables


async def assert_rebuild_equals_live(store: EventStore, where: Where) -> None:
    """Fail unless the read models in ``where`` equal a rebuild of ``store``, row for row.

    They are brought to the head of the log first, and must not have been started over for that.
    The log must not grow meanwhile.
    """
    before = apart(_positions, where)
    async with Views.open(store, where) as views:
        for name in PROJECTIONS:
            await views.reached(await store.head(), name)
        for checkpoint in await views.checkpoints():
            position = before.get(checkpoint.name)
            assert position is None or position.generation == checkpoint.generation
    async with _elsewhere(where) as fresh:
        await rebuild(store, fresh, named(None))
        live = dump(where)
        rebuilt = dump(fresh)
    assert live.keys() == rebuilt.keys()
    for table, rows in rebuilt.items():
        assert live[table] == rows, f"{table} differs from a rebuild"


def _positions(where: Where) -> dict[str, ledger.Position]:
    connection = connect(where, "read")
    try:
        return ledger.positions(connection)
    finally:
        connection.close()


@contextlib.asynccontextmanager
async def _elsewhere(where: Where) -> AsyncIterator[Where]:
    """Another place of the same kind, empty, for the time of the block."""
    if not is_postgres(where):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "rebuilt"
        return
    schema, url = await new_schema(str(where))
    try:
        yield url
    finally:
        connection: Any = await asyncpg.connect(str(where))
        await connection.execute(f"DROP SCHEMA {schema} CASCADE")
        await connection.close()


async def new_schema(url: str) -> tuple[str, str]:
    """Create an empty schema in a database; returns its name and the URL that leads there."""
    schema = f"s_{uuid4().hex[:12]}"
    connection: Any = await asyncpg.connect(url)
    await connection.execute(f"CREATE SCHEMA {schema}")
    await connection.close()
    base, _, _ = url.partition("?")
    return schema, f"{base}?{urlencode({'search_path': schema})}"

"""Compare read models row by row with what a rebuild from the first event gives."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from app.events.store import EventStore
from app.projections import ledger
from app.projections.rebuild import rebuild
from app.projections.views import PROJECTIONS, Views, named

__all__ = ["assert_rebuild_equals_live", "dump"]

Dump = dict[str, list[tuple[Any, ...]]]


def dump(path: str | Path) -> Dump:
    """All rows of the tables that serve, by name without generation; search indexes checked."""
    connection = ledger.connect(str(path))
    try:
        tables: Dump = {}
        connection.execute("BEGIN IMMEDIATE")
        for name in PROJECTIONS:
            position = ledger.position(connection, name)
            assert position is not None, f"{name} has never run"
            assert position.error is None, f"{name} stands still: {position.error}"
            tables[f"{name} seq"] = [(position.seq,)]
            tables |= _tables(connection, f"{name}_{position.generation}_", name)
        return tables
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.close()


def _tables(connection: sqlite3.Connection, prefix: str, name: str) -> Dump:
    found = connection.execute(
        "SELECT name, sql LIKE 'CREATE VIRTUAL%' FROM sqlite_schema WHERE type = 'table'"
        " AND substr(name, 1, ?) = ? AND name NOT LIKE '%_search\\__%' ESCAPE '\\' ORDER BY name",
        (len(prefix), prefix),
    ).fetchall()
    assert found, f"{name} has no tables"
    tables: Dump = {}
    for table, virtual in found:
        if virtual:  # raises unless the index says exactly what the indexed table says
            connection.execute(f"INSERT INTO {table} ({table}, rank) VALUES ('integrity-check', 1)")
        rows = connection.execute(f"SELECT * FROM {table}").fetchall()
        tables[f"{name} {table.removeprefix(prefix)}"] = sorted(rows, key=repr)
    return tables


async def assert_rebuild_equals_live(store: EventStore, path: str | Path) -> None:
    """Fail unless the read models in ``path`` equal a rebuild of ``store``, row for row.

    They are brought to the head of the log first, and must not have been started over for that.
    The log must not grow meanwhile.
    """
    connection = ledger.connect(str(path))
    before = {name: ledger.position(connection, name) for name in PROJECTIONS}
    connection.close()
    async with Views.open(store, path) as views:
        for name in PROJECTIONS:
            await views.reached(await store.head(), name)
        for checkpoint in await views.checkpoints():
            position = before[checkpoint.name]
            assert position is None or position.generation == checkpoint.generation
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "rebuilt"
        await rebuild(store, str(fresh), named(None))
        live, rebuilt = dump(path), dump(fresh)
    assert live.keys() == rebuilt.keys()
    for table, rows in rebuilt.items():
        assert live[table] == rows, f"{table} differs from a rebuild"

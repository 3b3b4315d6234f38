"""What does a hop to the connection's thread cost, and what do three of them cost a batch?"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiosqlite
import uvloop

from app.events import sqlite_sql as sql
from app.events.migrate import apply
from app.events.migration import migrations
from app.events.sqlite import execute_all
from bench.questions.writers import TEXT
from bench.report import Report

CALLS = 300
ROUNDS = 7
EMPTY_CALLS = 3_000

Row = tuple[Any, ...]
Commit = Callable[[list[Row]], Awaitable[None]]


def main() -> None:
    """Measure and publish."""
    rows = [
        uvloop.run(_compare(synchronous, events))
        for synchronous in ("FULL", "NORMAL")
        for events in (1, 64)
    ]
    hop, direct = uvloop.run(_empty())
    Report(
        name="questions-hops",
        title="SQLite on a thread of its own: hops for a batch",
        columns=[
            "synchronous, events a batch",
            "no hop, µs a batch",
            "one hop, µs",
            "three hops, µs",
            "one / none",
            "three / one",
        ],
        rows=rows,
        notes=[
            f"Median of {ROUNDS} rounds of {CALLS} batches, the three in turn, each on a database "
            "of its own: the same rows with the same statements, BEGIN IMMEDIATE, executemany and "
            "COMMIT. No hop blocks the event loop and is here for comparison alone; three hops "
            "are what aiosqlite's own methods make of it, one is what the store does.",
            f"An empty call: {hop:.1f} µs through the thread, {direct:.2f} µs without.",
        ],
    ).publish()


async def _compare(synchronous: str, events: int) -> list[Any]:
    found: list[list[float]] = [[], [], []]
    with tempfile.TemporaryDirectory() as folder:
        conns = [await _open(Path(folder) / f"{n}.db", synchronous) for n in range(3)]
        ways = [_direct(conns[0]), _one_hop(conns[1]), _three_hops(conns[2])]
        done = 0
        for _ in range(ROUNDS):
            batches = [_rows(done + n * events, events) for n in range(CALLS)]
            done += CALLS * events
            for way, times in zip(ways, found, strict=True):
                start = time.perf_counter()
                for batch in batches:
                    await way(batch)
                times.append((time.perf_counter() - start) / CALLS * 1e6)
        for conn in conns:
            await conn.close()
    none, one, three = map(statistics.median, found)
    return [f"{synchronous}, {events}", none, one, three, one / none, three / one]


async def _open(path: Path, synchronous: str) -> aiosqlite.Connection:
    conn = await aiosqlite.connect(path, isolation_level=None, check_same_thread=False)
    await conn._execute(_prepare, conn._conn, synchronous)  # type: ignore[no-untyped-call]
    return conn


def _prepare(conn: sqlite3.Connection, synchronous: str) -> None:
    execute_all(conn, [pragma.format(synchronous=synchronous) for pragma in sql.PRAGMAS])
    conn.execute("PRAGMA wal_autocheckpoint = 4000")
    apply(conn, migrations("sqlite"))


def _rows(after: int, count: int) -> list[Row]:
    return [
        (
            seq,
            1,
            seq,
            1,
            1,
            0,
            "handler:bench",
            None,
            None,
            None,
            TEXT.encode(),
            b"0" * 16,
            b"1" * 32,
        )
        for seq in range(after + 1, after + count + 1)
    ]


def _write(conn: sqlite3.Connection, batch: list[Row]) -> None:
    conn.execute("BEGIN IMMEDIATE")
    conn.executemany(sql.INSERT_EVENT, batch)
    conn.execute("COMMIT")


def _direct(conn: aiosqlite.Connection) -> Commit:
    async def commit(batch: list[Row]) -> None:
        _write(conn._conn, batch)

    return commit


def _one_hop(conn: aiosqlite.Connection) -> Commit:
    async def commit(batch: list[Row]) -> None:
        await conn._execute(_write, conn._conn, batch)  # type: ignore[no-untyped-call]

    return commit


def _three_hops(conn: aiosqlite.Connection) -> Commit:
    async def commit(batch: list[Row]) -> None:
        await conn.execute("BEGIN IMMEDIATE")
        await conn.executemany(sql.INSERT_EVENT, batch)
        await conn.execute("COMMIT")

    return commit


async def _empty() -> tuple[float, float]:
    """Microseconds of a call that does nothing, through the thread and without."""
    conn = await aiosqlite.connect(":memory:")

    def nothing() -> None:
        pass

    start = time.perf_counter()
    for _ in range(EMPTY_CALLS):
        await conn._execute(nothing)  # type: ignore[no-untyped-call]
    hop = (time.perf_counter() - start) / EMPTY_CALLS * 1e6
    start = time.perf_counter()
    for _ in range(EMPTY_CALLS):
        nothing()
        await asyncio.sleep(0)
    direct = (time.perf_counter() - start) / EMPTY_CALLS * 1e6
    await conn.close()
    return hop, direct


if __name__ == "__main__":
    main()

"""Appending to the log: 64 appenders through the store, beside raw ``sqlite3``."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from app.events import catalogue as c
from app.events import sqlite_sql as sql
from app.events.codec import new
from app.events.envelope import thread_stream
from app.events.ids import uuid7
from app.events.migrate import apply
from app.events.migration import migrations
from app.events.sqlite import SqliteStore
from app.events.store import Append, Appended
from bench.report import Goal, Report, percentile

APPENDERS = 64
EACH = 300
ROUNDS = 5
TEXT = "A few words, as long as the text of a batch of tokens is. " * 2


def main(arguments: list[str] | None = None) -> None:
    """Measure and publish."""
    rounds = [_round() for _ in range(ROUNDS)]
    ratios = [f"{found['ratio']:.2f}" for found in rounds]
    best = sorted(rounds, key=lambda r: r["ratio"])[ROUNDS // 2]
    single = uvloop.run(_single())
    rows = [
        [
            f"store, {APPENDERS} appenders",
            best["store"],
            best["batch"],
            best["p50"],
            best["p99"],
        ],
        ["raw sqlite3, same rows, same batches", best["raw"], best["batch"], "", ""],
        ["store, 1 appender", single["rate"], 1, single["p50"], single["p99"]],
    ]
    Report(
        name="log",
        title="Log: group commit in SQLite, synchronous=FULL",
        columns=["", "events/s", "events a commit", "append p50 ms", "append p99 ms"],
        rows=rows,
        goals=[Goal("store / raw", best["ratio"], 0.5)],
        notes=[
            f"Median of {ROUNDS} rounds; ratios {', '.join(ratios)}.",
            f"Each round: {APPENDERS} tasks append {EACH} events each, one at a time, every append "
            "acknowledged after its commit was synced; then the same rows, hashes included, go "
            "into a new database with the same schema by executemany, in transactions of the "
            "sizes that group commit reached.",
        ],
    ).publish()


def _round() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        found = uvloop.run(_appenders(path))
        raw = _raw(path, Path(folder) / "raw.db", found.pop("sizes"))
    return found | {"raw": raw, "ratio": found["store"] / raw}


async def _appenders(path: Path) -> dict[str, Any]:
    store = await SqliteStore.open(path, synchronous="full")
    sizes: list[int] = []
    write = store._backend.write

    async def counting(batch: Any) -> None:
        sizes.append(len(batch.events))
        await write(batch)

    store._backend.write = counting  # type: ignore[method-assign]
    took: list[float] = []

    async def appender() -> None:
        stream, message = thread_stream(uuid7()), uuid7()
        for _ in range(EACH):
            event = new(c.MessageDelta(message=message, text=TEXT), actor="handler:bench")
            start = time.perf_counter()
            outcome = await store.append(Append(stream=stream, events=[event]))
            took.append(time.perf_counter() - start)
            assert isinstance(outcome, Appended)

    start = time.perf_counter()
    await asyncio.gather(*(appender() for _ in range(APPENDERS)))
    seconds = time.perf_counter() - start
    await store.aclose()
    return {
        "store": APPENDERS * EACH / seconds,
        "batch": statistics.mean(sizes),
        "sizes": sizes,
        "p50": percentile(took, 50) * 1e3,
        "p99": percentile(took, 99) * 1e3,
    }


async def _single() -> dict[str, float]:
    """One appender: what a commit costs."""
    with tempfile.TemporaryDirectory() as folder:
        store = await SqliteStore.open(Path(folder) / "one.db", synchronous="full")
        took: list[float] = []
        for _ in range(EACH):
            event = new(c.MessageDelta(message="m", text=TEXT))
            start = time.perf_counter()
            await store.append(Append(stream="thread/one", events=[event]))
            took.append(time.perf_counter() - start)
        await store.aclose()
    return {
        "rate": EACH / sum(took),
        "p50": percentile(took, 50) * 1e3,
        "p99": percentile(took, 99) * 1e3,
    }


def _raw(source: Path, target: Path, sizes: list[int]) -> float:
    """Copy the rows in transactions of these sizes; returns events a second."""
    with sqlite3.connect(source) as reader:
        rows = reader.execute("SELECT * FROM event ORDER BY seq").fetchall()
        streams = reader.execute("SELECT * FROM stream").fetchall()
        types = reader.execute("SELECT * FROM event_type").fetchall()
    reader.close()
    writer = sqlite3.connect(target, isolation_level=None)
    for pragma in sql.PRAGMAS:
        writer.execute(pragma.format(synchronous="FULL")).fetchall()
    writer.execute("PRAGMA wal_autocheckpoint = 1000")
    apply(writer, migrations("sqlite"))
    batches, at = [], 0
    for size in sizes:
        batches.append(rows[at : at + size])
        at += size
    assert at == len(rows)
    start = time.perf_counter()
    writer.execute("BEGIN IMMEDIATE")
    writer.executemany(sql.INSERT_STREAM, streams)
    writer.executemany(sql.INSERT_TYPE, types)
    writer.execute("COMMIT")
    for batch in batches:
        writer.execute("BEGIN IMMEDIATE")
        writer.executemany(sql.INSERT_EVENT, batch)
        writer.execute("COMMIT")
    seconds = time.perf_counter() - start
    writer.close()
    return len(rows) / seconds


if __name__ == "__main__":
    main()

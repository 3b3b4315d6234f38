"""SQLite with synchronous=FULL: checkpoints between batches, or whenever SQLite thinks fit?"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from app.events import sqlite
from app.events.envelope import thread_stream
from app.events.ids import uuid7
from app.events.sqlite import SqliteBackend, SqliteStore, execute_all
from app.events.store import Append
from bench.questions.writers import Pace, delta, flushes
from bench.report import Report

BYTES, NEVER = sqlite.CHECKPOINT_BYTES, 1 << 60
ROUNDS = 5
WRITERS = 64
EACH = 600
STREAMS = 32
PAUSE = 0.02
SECONDS = 5.0

#: Name -> pages after which SQLite checkpoints inside a commit; None: the store does, between.
WAYS: dict[str, int | None] = {
    "between batches, every 4 MB": None,
    "inside a commit, every 1,000 pages (4 MB)": 1000,
    "never": 0,
}


def main() -> None:
    """Measure and publish."""
    disk = flushes()
    rows, first = [], 0.0
    found: dict[str, list[tuple[Pace, int, Pace]]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, pages in WAYS.items():
            found[name].append(uvloop.run(_round(pages)))
    for name, rounds in found.items():
        rate = statistics.median(count / busy.seconds for busy, count, _ in rounds)
        busy = Pace([took for pace, _, _ in rounds for took in pace.took])
        paced = Pace([took for _, _, pace in rounds for took in pace.took])
        first = first or rate
        rows.append(
            [
                name,
                rate,
                rate / first,
                *(busy.at(percent) for percent in (50, 99, 99.9)),
                max(busy.took) * 1e3,
                *(paced.at(percent) for percent in (50, 99, 99.9)),
                max(paced.took) * 1e3,
            ]
        )
    Report(
        name="questions-checkpoints",
        title="SQLite, synchronous=FULL: when to checkpoint",
        columns=[
            "checkpoints",
            "commits/s, busy",
            "ratio",
            "append p50 ms",
            "p99 ms",
            "p99.9 ms",
            "max ms",
            "paced p50 ms",
            "p99 ms",
            "p99.9 ms",
            "max ms",
        ],
        rows=rows,
        notes=[
            f"Busy: {WRITERS} tasks append {EACH} events each through the store, without pause. "
            f"Paced: {STREAMS} tasks append one every {PAUSE * 1e3:.0f} ms, as streams of tokens "
            f"do, for {SECONDS:.0f} s. Rate: median of {ROUNDS} rounds, the ways in turn; times: "
            "of all rounds together.",
            f"The disk alone keeps {disk:,.0f} writes of 8 KiB a second (pwrite and fdatasync).",
        ],
    ).publish()


async def _round(pages: int | None) -> tuple[Pace, int, Pace]:
    with tempfile.TemporaryDirectory() as folder:
        store = await SqliteStore.open(Path(folder) / "log.db", synchronous="full")
        backend = store._backend
        assert isinstance(backend, SqliteBackend)
        sqlite.CHECKPOINT_BYTES = BYTES if pages is None else NEVER
        await backend._write(execute_all, [f"PRAGMA wal_autocheckpoint = {pages or 0}"])
        commits = _counting(backend)
        busy = await _busy(store)
        count = len(commits)
        paced = await _paced(store)
        await store.aclose()
    return busy, count, paced


def _counting(backend: SqliteBackend) -> list[int]:
    commits: list[int] = []
    write = backend.write

    async def counting(batch: Any) -> None:
        commits.append(len(batch.events))
        await write(batch)

    backend.write = counting  # type: ignore[method-assign]
    return commits


async def _busy(store: SqliteStore) -> Pace:
    pace = Pace()

    async def appender() -> None:
        stream = thread_stream(uuid7())
        for _ in range(EACH):
            await _append(store, stream, pace)

    start = time.perf_counter()
    await asyncio.gather(*(appender() for _ in range(WRITERS)))
    pace.seconds = time.perf_counter() - start
    return pace


async def _paced(store: SqliteStore) -> Pace:
    pace = Pace()
    until = time.perf_counter() + SECONDS

    async def appender(number: int) -> None:
        stream = thread_stream(uuid7())
        await asyncio.sleep(PAUSE * number / STREAMS)
        while time.perf_counter() < until:
            await _append(store, stream, pace)
            await asyncio.sleep(PAUSE)

    await asyncio.gather(*(appender(number) for number in range(STREAMS)))
    return pace


async def _append(store: SqliteStore, stream: str, pace: Pace) -> None:
    start = time.perf_counter()
    await store.append(Append(stream=stream, events=[delta()]))
    pace.took.append(time.perf_counter() - start)


if __name__ == "__main__":
    main()

"""Streaming over a log of a million events, beside streaming over an empty one.

``python -m bench.flat [EVENTS]``: 1,000,000 by default. The clients are those of bench.streaming.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from app.events import pg
from app.events.open import open_store
from app.events.seal import seal_now
from bench import streaming
from bench.filled import BLOCK, fill_postgres, fill_sqlite
from bench.harness import everlog
from bench.report import Goal, Report, percentile
from tests.support.postgres import Cluster, cluster, new_database

COUNT = 1_000_000
ROUNDS = 5


class Run(msgspec.Struct):
    """What clients saw of one server."""

    rate: float
    per_cpu: float
    p50: float
    p99: float


def main() -> None:
    """Measure and publish."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    count -= count % BLOCK
    with (
        tempfile.TemporaryDirectory() as name,
        cluster(max_wal_size="8GB", autovacuum="off") as server,
    ):
        folder = Path(name)
        (folder / "chat.py").write_text(streaming.HANDLER)
        sqlite = _sqlite(folder, count)
        postgres = _postgres(server, folder, count)
    rows = [*_rows("SQLite", *sqlite), *_rows("Postgres", *postgres)]
    Report(
        name="flat",
        title=f"Streaming over a log of {count:,} events beside an empty one",
        columns=[
            "",
            "tokens/s",
            "of the empty log's",
            "tokens per s of server CPU",
            "of the empty log's",
            "TTFT p50 ms",
            "TTFT p99 ms",
        ],
        rows=rows,
        goals=[
            Goal("SQLite: tokens/s, long / empty", rows[1][2], 0.9),
            Goal("Postgres: tokens/s, long / empty", rows[3][2], 0.9),
        ],
        notes=[
            f"Medians of {ROUNDS} servers each, started in turn; on each {streaming.ROUNDS} rounds "
            f"of {streaming.CLIENTS} clients and {streaming.TOKENS} tokens, as `bench.streaming` "
            "does it, 16 tokens an event. The long log is sealed, and its read models are folded "
            "before the first of them. The empty log is a new one for every server. Postgres has "
            "analyzed the long log, and not vacuumed it: see `bench.large` for why.",
        ],
    ).publish()


def _rows(name: str, empty: list[Run], long: list[Run]) -> list[list[Any]]:
    rates = [statistics.median(run.rate for run in runs) for runs in (empty, long)]
    cpus = [statistics.median(run.per_cpu for run in runs) for runs in (empty, long)]
    return [
        [
            f"{name}, {what}",
            rate,
            rate / rates[0],
            cpu,
            cpu / cpus[0],
            statistics.median(run.p50 for run in runs),
            statistics.median(run.p99 for run in runs),
        ]
        for what, rate, cpu, runs in zip(("empty", "long"), rates, cpus, (empty, long), strict=True)
    ]


def _sqlite(folder: Path, count: int) -> tuple[list[Run], list[Run]]:
    long = folder / "long.db"
    fill_sqlite(long, count)
    _prepare(folder, f"sqlite:///{long}")
    empty, full = [], []
    for turn in range(ROUNDS):
        empty.append(_stream(folder, f"sqlite:///{folder}/{turn}.db"))
        full.append(_stream(folder, f"sqlite:///{long}"))
    return empty, full


def _postgres(server: Cluster, folder: Path, count: int) -> tuple[list[Run], list[Run]]:
    long = uvloop.run(new_database(server))
    uvloop.run(fill_postgres(long, count))
    uvloop.run(_analyze(long))
    _prepare(folder, long)
    empty, full = [], []
    for _ in range(ROUNDS):
        empty.append(_stream(folder, uvloop.run(new_database(server))))
        full.append(_stream(folder, long))
    return empty, full


async def _analyze(url: str) -> None:
    conn = await pg.connect(url, statement_timeout="0")
    await conn.execute("ANALYZE")
    await conn.close()


def _prepare(folder: Path, url: str) -> None:
    """Seal the log, and fold its read models."""

    async def seal() -> None:
        async with open_store(url, synchronous="normal") as store:
            while await seal_now(store):
                pass

    uvloop.run(seal())
    with everlog(folder, {}, "--no-engine", database=url):
        pass  # ready means folded


def _stream(folder: Path, url: str) -> Run:
    arguments = [str(folder / "chat.py"), "--no-engine"]
    with everlog(folder, {}, *arguments, database=url) as (port, pid):
        sample, cpu = streaming._clients(f"ws://127.0.0.1:{port}/ws", pid, raw=False)
    total = streaming.CLIENTS * streaming.TOKENS * len(sample.seconds)
    return Run(
        total / sum(sample.seconds),
        total / cpu,
        percentile(sample.first, 50) * 1e3,
        percentile(sample.first, 99) * 1e3,
    )


if __name__ == "__main__":
    main()

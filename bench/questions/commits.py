"""How often a second can ``append_batch`` commit, and how long does a writer wait for its turn?

Beside it the same events go in without the append lock, positions from a sequence: what the total
order costs.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import uvloop

from bench.questions.writers import (
    TEXT,
    Pace,
    Writer,
    connections,
    empty_log,
    flushes,
    server_version,
)
from bench.report import Report
from tests.support.postgres import Cluster, cluster

ROUNDS = 5
SECONDS = 0.8
WRITERS = (1, 4, 8, 16)
EVENTS = (1, 16, 64)

FREE = """
    CREATE SEQUENCE free_seq CACHE 1;
    CREATE TABLE free (LIKE event INCLUDING ALL)"""

#: The same columns and indexes, leaves computed as in `append_batch`, in no particular order.
INSERT_FREE = """
    INSERT INTO free (seq, stream_id, time, version, type_id, schema, actor, data, salt, leaf)
    SELECT nextval('free_seq'), $1, 0, e.version, 1, 1, 'handler:bench', e.data, e.salt,
           sha256(convert_to('[' || e.version || $5, 'UTF8') || sha256(e.salt || e.data))
    FROM unnest($2::integer[], $3::bytea[], $4::bytea[]) AS e(version, data, salt)"""


def main() -> None:
    """Measure and publish."""
    disks = [flushes()]
    with cluster() as server:
        rows = [
            row
            for synchronous in ("on", "off")
            for events in EVENTS
            for row in uvloop.run(_grid(server, synchronous, events))
        ]
        version = uvloop.run(server_version(server))
    disks += [flushes(), flushes()]
    disk = statistics.median(disks)
    Report(
        name="questions-commits",
        title="Commits under the append lock",
        columns=[
            "synchronous_commit, events a commit, writers",
            "commits/s",
            "events/s",
            "p50 ms",
            "p99 ms",
            "without the lock, commits/s",
            "with / without",
            "of the disk's flushes",
        ],
        rows=[[*row, row[1] / disk] for row in rows],
        notes=[
            f"{version}, default settings, fsync on; medians of {ROUNDS} rounds of {SECONDS} s, "
            "with and without the lock in turn; p50 and p99 over all rounds. One process, a "
            "connection for each writer, arguments made beforehand; every writer sends its next "
            f"batch when the last is committed. The disk alone keeps {disk:,.0f} writes of 8 KiB a "
            "second (pwrite and fdatasync, one after the other; median of three).",
            "Without the lock: an insert of the same rows into a table with the same indexes, "
            "leaves included, where Postgres may flush several commits together.",
        ],
    ).publish()


async def _grid(server: Cluster, synchronous: str, events: int) -> list[list[Any]]:
    rows = []
    url = await empty_log(server)
    for writers in WRITERS:
        locked, free = [], []
        async with connections(url, writers, synchronous_commit=synchronous) as conns:
            for _ in range(ROUNDS):
                locked.append(await _locked(conns, events))
                free.append(await _free(conns, events))
        rate, other = (statistics.median(pace.rate for pace in paces) for paces in (locked, free))
        took = Pace([seconds for pace in locked for seconds in pace.took])
        times = (took.at(50), took.at(99))
        name = f"{synchronous}, {events}, {writers}"
        rows.append([name, rate, rate * events, *times, other, rate / other])
    return rows


async def _locked(conns: list[Any], events: int) -> Pace:
    writers = [Writer(conn, streams=1, events=events) for conn in conns]
    for writer in writers:
        for _ in range(10):
            await writer.write()
    pace, start = Pace(), time.perf_counter()
    await asyncio.gather(*(writer.run(start + SECONDS, pace) for writer in writers))
    pace.seconds = time.perf_counter() - start
    return pace


async def _free(conns: list[Any], events: int) -> Pace:
    await conns[0].execute("DROP TABLE IF EXISTS free; DROP SEQUENCE IF EXISTS free_seq;" + FREE)
    pace = Pace()

    async def write(stream: int, conn: Any, until: float) -> None:
        insert = await conn.prepare(INSERT_FREE)
        data, salts = [TEXT.encode()] * events, [b"0123456789abcdef"] * events
        version = 0
        while (start := time.perf_counter()) < until:
            versions = list(range(version + 1, version + events + 1))
            await insert.fetch(stream, versions, data, salts, TEXT)
            version += events
            pace.took.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(write(n, conn, start + SECONDS) for n, conn in enumerate(conns, 1)))
    pace.seconds = time.perf_counter() - start
    return pace


if __name__ == "__main__":
    main()

"""Appending to a log in Postgres: 64 appenders through the store, beside raw ``unnest`` inserts."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import uvloop

from app.events import catalogue as c
from app.events import pg
from app.events.codec import new
from app.events.envelope import thread_stream
from app.events.ids import uuid7
from app.events.postgres import PostgresStore
from app.events.store import Append, Appended
from bench.report import Goal, Report, percentile
from tests.support.postgres import Cluster, cluster, new_database

APPENDERS = 64
EACH = 300
ROUNDS = 5
TEXT = "A few words, as long as the text of a batch of tokens is. " * 2

#: The same rows, hashes included, through one prepared statement: what asyncpg can do at best.
RAW = """
    INSERT INTO event (seq, stream_id, time, version, type_id, schema, actor, request, run, cause,
                       data, salt, leaf)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::int[], $5::int[],
        $6::int[], $7::text[], $8::text[], $9::text[], $10::text[], $11::bytea[], $12::bytea[],
        $13::bytea[])"""


def main(arguments: list[str] | None = None) -> None:
    """Measure and publish."""
    with cluster() as server:
        rounds = [uvloop.run(_round(server)) for _ in range(ROUNDS)]
        single = uvloop.run(_appending(server, appenders=1))
        version = uvloop.run(_version(server))
    ratios = ", ".join(f"{found['ratio']:.2f}" for found in rounds)
    median = sorted(rounds, key=lambda r: r["ratio"])[ROUNDS // 2]
    Report(
        name="postgres",
        title="Log: group commit in Postgres, synchronous_commit=on, fsync on",
        columns=["", "events/s", "events a commit", "append p50 ms", "append p99 ms"],
        rows=[
            [
                f"store, {APPENDERS} appenders",
                median["store"],
                median["batch"],
                median["p50"],
                median["p99"],
            ],
            ["raw asyncpg unnest, same rows, same batches", median["raw"], median["batch"], "", ""],
            ["store, 1 appender", single["store"], 1, single["p50"], single["p99"]],
        ],
        goals=[Goal("store / raw", median["ratio"], 0.5)],
        notes=[
            f"Median of {ROUNDS} rounds; ratios {ratios}.",
            f"{version}, on this machine, default settings.",
            f"Each round: {APPENDERS} tasks append {EACH} events each, one at a time, every append "
            "acknowledged after its commit; then the same rows go into another database with the "
            "same table and indexes, in statements of the sizes that group commit reached.",
        ],
    ).publish()


async def _version(server: Cluster) -> str:
    conn = await pg.connect(server.url())
    try:
        return str(await conn.fetchval("SELECT split_part(version(), ' on ', 1)"))
    finally:
        await conn.close()


async def _round(server: Cluster) -> dict[str, Any]:
    found = await _appending(server, appenders=APPENDERS)
    raw = await _raw(server, found.pop("url"), found.pop("sizes"))
    return found | {"raw": raw, "ratio": found["store"] / raw}


async def _appending(server: Cluster, *, appenders: int) -> dict[str, Any]:
    url = await new_database(server)
    store = await PostgresStore.open(url)
    sizes: list[int] = []
    call = store._call

    async def counting(appends: Any) -> Any:
        sizes.append(sum(len(append.events) for append in appends))
        return await call(appends)

    store._call = counting  # type: ignore[method-assign]
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
    await asyncio.gather(*(appender() for _ in range(appenders)))
    seconds = time.perf_counter() - start
    await store.aclose()
    return {
        "store": appenders * EACH / seconds,
        "batch": statistics.mean(sizes),
        "sizes": sizes,
        "p50": percentile(took, 50) * 1e3,
        "p99": percentile(took, 99) * 1e3,
        "url": url,
    }


async def _raw(server: Cluster, source: str, sizes: list[int]) -> float:
    """Write the rows again in statements of these sizes; returns events a second."""
    reader = await pg.connect(source)
    rows = [tuple(row) for row in await reader.fetch("SELECT * FROM event ORDER BY seq")]
    await reader.close()
    target = await new_database(server)
    await (await PostgresStore.open(target)).aclose()
    writer = await pg.connect(target)
    insert = await writer.prepare(RAW)
    start, at = time.perf_counter(), 0
    for size in sizes:
        columns = [list(column) for column in zip(*rows[at : at + size], strict=True)]
        await insert.fetch(*columns)
        at += size
    seconds = time.perf_counter() - start
    assert at == len(rows)
    await writer.close()
    return len(rows) / seconds


if __name__ == "__main__":
    main()

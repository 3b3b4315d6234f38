"""What does the loop of ``append_batch`` cost beside one set-based statement, at 64 appends?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from app.events import pg
from bench.questions.writers import Writer, delta, empty_log, server_version
from bench.report import Report
from tests.support.postgres import Cluster, cluster

APPENDS = 64
EVENTS = (1, 4)
CALLS = 150
ROUNDS = 7

#: Optimistic: knows expected versions, but no queue, commands, fences or answers sent twice, and
#: no two appends to one stream where the first is refused. The lock needs a statement of its own,
#: or the snapshot would be older than the last commit.
SET_BASED = """
CREATE FUNCTION set_based(
    p_streams bigint[], p_expected integer[], p_heads text[], p_counts integer[],
    e_append integer[], e_place integer[], e_type integer[], e_time bigint[], e_actor text[],
    e_data bytea[], e_salt bytea[], e_tail text[]
) RETURNS TABLE (place integer, first_seq bigint, last_version integer) LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off AS $$
BEGIN
    PERFORM log_lock();
    RETURN QUERY WITH
    base AS MATERIALIZED (SELECT coalesce(max(seq), 0) AS seq FROM event),
    given AS MATERIALIZED (
        SELECT a.ord::integer AS ord, a.stream, a.expected, a.head, a.count,
               coalesce((SELECT max(version) FROM event WHERE stream_id = a.stream), 0) AS version
        FROM unnest(p_streams, p_expected, p_heads, p_counts) WITH ORDINALITY
            AS a(stream, expected, head, count, ord)),
    accepted AS MATERIALIZED (
        SELECT *, (SELECT seq FROM base) + sum(count) OVER (ORDER BY ord) - count AS before
        FROM given WHERE expected < 0 OR expected = version),
    written AS (
        INSERT INTO event (seq, stream_id, time, version, type_id, schema, actor, data, salt, leaf)
        SELECT a.before + e.place, a.stream, e.time, a.version + e.place, e.type, 1, e.actor,
               e.data, e.salt,
               sha256(convert_to('[' || (a.before + e.place) || a.head || (a.version + e.place)
                                 || e.tail, 'UTF8') || sha256(e.salt || e.data))
        FROM unnest(e_append, e_place, e_type, e_time, e_actor, e_data, e_salt, e_tail)
            AS e(append, place, type, time, actor, data, salt, tail)
        JOIN accepted a ON a.ord = e.append)
    SELECT ord, (before + 1)::bigint, version + count FROM accepted;
END $$"""

CALL = "SELECT * FROM set_based($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12)"

READY = """
    INSERT INTO event (seq, stream_id, time, version, type_id, schema, actor, data, salt, leaf)
    SELECT e.seq, e.stream, e.time, e.version, e.type, 1, e.actor, e.data, e.salt, e.leaf
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::integer[], $5::integer[],
                $6::text[], $7::bytea[], $8::bytea[], $9::bytea[])
        AS e(seq, stream, time, version, type, actor, data, salt, leaf)"""

Commit = Callable[[], Awaitable[Any]]


def main() -> None:
    """Measure and publish."""
    rows = []
    with cluster() as server:
        for synchronous in ("off", "on"):
            for events in EVENTS:
                rows += uvloop.run(_compare(server, synchronous, events))
        version = uvloop.run(server_version(server))
    Report(
        name="questions-statement",
        title=f"append_batch beside one set-based statement, {APPENDS} appends a call",
        columns=[
            "synchronous_commit, events an append",
            "append_batch, ms a call",
            "µs an append",
            "set-based, ms a call",
            "ready rows by unnest, ms a call",
            "append_batch / set-based",
            "append_batch / ready rows",
        ],
        rows=rows,
        notes=[
            f"{version}, default settings. Median of {ROUNDS} rounds of {CALLS} calls each, the "
            "three in turn, every one on a log of its own; one connection, arguments made "
            "beforehand.",
            "The set-based statement decides nothing but expected versions; append_batch also "
            "decides fences, the queue's transitions, commands and batches that are sent again. "
            "Ready rows: nothing is decided or hashed, the lower bound.",
        ],
    ).publish()


async def _compare(server: Cluster, synchronous: str, events: int) -> list[list[Any]]:
    ways = [await make(server, synchronous, events) for make in (_function, _set_based, _ready)]
    found: list[list[float]] = [[] for _ in ways]
    for _ in range(ROUNDS):
        for (_, commit), times in zip(ways, found, strict=True):
            start = time.perf_counter()
            for _ in range(CALLS):
                await commit()
            times.append((time.perf_counter() - start) / CALLS * 1e3)
    for conn, _ in ways:
        await conn.close()
    function, statement, ready = map(statistics.median, found)
    ratios = (function / statement, function / ready)
    spent = function / APPENDS * 1e3
    return [[f"{synchronous}, {events}", function, spent, statement, ready, *ratios]]


async def _function(server: Cluster, synchronous: str, events: int) -> tuple[Any, Commit]:
    conn = await pg.connect(await empty_log(server), synchronous_commit=synchronous)
    writer = Writer(conn, streams=APPENDS, events=events)
    await writer.write()
    await writer.write()
    return conn, writer.write


async def _set_based(server: Cluster, synchronous: str, events: int) -> tuple[Any, Commit]:
    conn = await pg.connect(await empty_log(server), synchronous_commit=synchronous)
    await conn.execute(SET_BASED)
    statement, size = await conn.prepare(CALL), APPENDS * events
    streams = list(range(1, APPENDS + 1))
    fixed = [
        [f',"thread/{"0" * 32}-{stream:03}",' for stream in streams],
        [events] * APPENDS,
        [stream for stream in streams for _ in range(events)],
        list(range(1, events + 1)) * APPENDS,
        [1] * size,
        [time.time_ns()] * size,
        ["handler:bench"] * size,
        [delta().data] * size,
        [b"0123456789abcdef"] * size,
        [',"message.delta",1,1764000000000000000,"handler:bench",null,null,null]'] * size,
    ]
    version = 0

    async def commit() -> None:
        nonlocal version
        rows = await statement.fetch(streams, [version] * APPENDS, *fixed)
        version += events
        assert len(rows) == APPENDS

    return conn, commit


async def _ready(server: Cluster, synchronous: str, events: int) -> tuple[Any, Commit]:
    conn = await pg.connect(await empty_log(server), synchronous_commit=synchronous)
    statement, size = await conn.prepare(READY), APPENDS * events
    streams = [stream for stream in range(1, APPENDS + 1) for _ in range(events)]
    fixed = [
        [1] * size,
        ["handler:bench"] * size,
        [delta().data] * size,
        [b"0123456789abcdef"] * size,
        [b"0" * 32] * size,
    ]
    done = 0

    async def commit() -> None:
        nonlocal done
        first = done // APPENDS
        seqs = list(range(done + 1, done + size + 1))
        versions = list(range(first + 1, first + events + 1)) * APPENDS
        await statement.fetch(seqs, streams, [0] * size, versions, *fixed)
        done += size

    return conn, commit


if __name__ == "__main__":
    main()

"""A long log beside an empty one: appending, opening, reading; Postgres and SQLite.

``python -m bench.large [EVENTS]``: 10,000,000 by default, in whole conversations.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from app.events import pg
from app.events.envelope import NewEvent, thread_stream
from app.events.ids import uuid7
from app.events.logstore import LogStore
from app.events.open import open_store
from app.events.store import Append, Appended
from bench.filled import (
    BLOCK,
    EVENTS,
    STREAMS,
    fill_postgres,
    fill_sqlite,
    like,
    stream_name,
)
from bench.questions.writers import delta
from bench.report import Goal, Report
from tests.support.postgres import Cluster, cluster, new_database

COUNT = 10_000_000
ROUNDS = 5
APPENDERS = 64
EACH = 300
READS = 100
PAGE = 1_000

ROWS = (
    "empty",
    "long, new threads",
    "long, threads anywhere in it",
    "long, just vacuumed, smaller events than those in it",
)


class Round(msgspec.Struct):
    """What one opening of a log gave: seconds, and events a second."""

    opening: float
    thread: float
    page: float
    rates: list[float]


class Found(msgspec.Struct):
    """What one kind of database gave, and what there is to say about it."""

    empty: list[Round] = []
    long: list[Round] = []
    small: list[float] = []
    said: str = ""


def main() -> None:
    """Measure and publish."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    count -= count % BLOCK
    postgres, sqlite = _postgres(count), _sqlite(count)
    Report(
        name="large",
        title=f"A log of {count:,} events beside an empty one",
        columns=[
            "",
            f"events/s, {APPENDERS} appenders",
            "of the empty log's",
            "open ms",
            "of the empty log's",
            f"read a thread of {EVENTS}, ms",
            "of the short log's",
            f"read {PAGE:,} by seq, ms",
            "of the short log's",
        ],
        rows=[*_rows("Postgres", postgres), *_rows("SQLite", sqlite)],
        goals=[
            Goal(f"{name}, append rate, long / empty", _ratio(found, "rates", 0), 0.9)
            for name, found in (("Postgres", postgres), ("SQLite", sqlite))
        ],
        notes=[
            f"Medians of {ROUNDS} rounds, the logs in turn, each opened anew in every round; "
            f"{APPENDERS} tasks append {EACH} events each, one at a time, synchronous, fsync on. "
            f"The empty log is a new one with {BLOCK:,} events, so that there is something to "
            f"read: {READS} threads anywhere, and as many pages. The long one has "
            f"{count // EVENTS:,} threads of {EVENTS} events, {STREAMS} of them side by side. Its "
            "files are in the operating system's cache as far as they fit.",
            "Appended events are as large as those in the log, but for the last row of Postgres: "
            "there they are 70 bytes smaller, and fit into room that VACUUM found at the end of "
            "nearly every page. Each then goes into another page, which after a checkpoint is "
            "written to the WAL as a whole; after as many such events as there are pages all is as "
            "before. A log that is vacuumed as it grows has such room only in what came last.",
            postgres.said,
            sqlite.said,
        ],
    ).publish()


def _rows(name: str, found: Found) -> Iterator[list[Any]]:
    rows = ((ROWS[0], found.empty, 0), (ROWS[1], found.long, 0), (ROWS[2], found.long, 1))
    for row, which, place in rows:
        cells: list[Any] = [_median(which, "rates", place), _ratio(found, "rates", place, which)]
        for what in ("opening", "thread", "page"):
            once = row != ROWS[2]  # appending elsewhere changes nothing of the rest
            cells.append(_median(which, what) * 1e3 if once else "")
            cells.append(_ratio(found, what, 0, which) if once else "")
        yield [f"{name}, {row}", *cells]
    if found.small:
        rate = statistics.median(found.small)
        yield [f"{name}, {ROWS[3]}", rate, rate / _median(found.empty, "rates"), *[""] * 6]


def _median(rounds: list[Round], what: str, place: int = 0) -> float:
    values = [getattr(one, what) for one in rounds]
    return float(statistics.median(v[place] if isinstance(v, list) else v for v in values))


def _ratio(found: Found, what: str, place: int, which: list[Round] | None = None) -> float:
    """Median of the long log (or of ``which``) over that of the empty one."""
    return _median(which or found.long, what, place) / _median(found.empty, what)


# ------------------------------------------------------------------------------- one round


async def _round(url: str, count: int) -> Round:
    start = time.perf_counter()
    async with open_store(url) as store:
        opening = time.perf_counter() - start
        thread = await _timed(lambda: _read_thread(store, count))
        page = await _timed(lambda: _read_page(store, count))
        rates = [await _append(store, _new_streams(), like)]
        if count > BLOCK:
            old = random.sample(range(1, count // EVENTS + 1), APPENDERS)
            rates.append(await _append(store, [stream_name(id) for id in old], like))
    return Round(opening, thread, page, rates)


async def _timed(read: Callable[[], Awaitable[None]]) -> float:
    """Median seconds of a read; the first ones only warm up."""
    took = []
    for _ in range(READS):
        start = time.perf_counter()
        await read()
        took.append(time.perf_counter() - start)
    return statistics.median(took[READS // 10 :])


async def _read_thread(store: LogStore, count: int) -> None:
    id = random.randrange(1, count // EVENTS + 1)
    events = await store.fetch(stream=stream_name(id), limit=EVENTS)
    assert len(events) == EVENTS


async def _read_page(store: LogStore, count: int) -> None:
    after = random.randrange(0, count - PAGE + 1)
    assert len(await store.fetch(after=after, limit=PAGE)) == PAGE


def _new_streams() -> list[str]:
    return [thread_stream(uuid7()) for _ in range(APPENDERS)]


async def _append(store: LogStore, streams: list[str], event: Callable[[], NewEvent]) -> float:
    """Events a second."""

    async def appender(stream: str) -> None:
        for _ in range(EACH):
            outcome = await store.append(Append(stream=stream, events=[event()]))
            assert isinstance(outcome, Appended)

    start = time.perf_counter()
    await asyncio.gather(*map(appender, streams))
    return len(streams) * EACH / (time.perf_counter() - start)


# ------------------------------------------------------------------------------- databases


def _postgres(count: int) -> Found:
    found = Found()
    with cluster(max_wal_size="8GB") as server:
        long = uvloop.run(new_database(server))
        start = time.perf_counter()
        uvloop.run(fill_postgres(long, count))
        filled = time.perf_counter() - start
        found.said = uvloop.run(_kept(long, count, filled))
        for _ in range(ROUNDS):
            found.empty.append(uvloop.run(_round(uvloop.run(_short(server)), BLOCK)))
            found.long.append(uvloop.run(_round(long, count)))
        found.said += uvloop.run(_vacuumed(long))
        found.small = [uvloop.run(_small(long)) for _ in range(ROUNDS)]
    return found


async def _short(server: Cluster) -> str:
    url = await new_database(server)
    await fill_postgres(url, BLOCK)
    return url


SIZES = """
    SELECT pg_table_size('event'), pg_relation_size('event_pkey'),
           pg_relation_size('event_version'), pg_table_size('stream'), pg_indexes_size('stream')"""


async def _kept(url: str, count: int, filled: float) -> str:
    """Sizes, and how long the first VACUUM takes."""
    conn = await pg.connect(url, statement_timeout="0")
    table, by_seq, by_version, streams, by_name = await conn.fetchrow(SIZES)
    start = time.perf_counter()
    await conn.execute("VACUUM (ANALYZE) event")
    vacuum = time.perf_counter() - start
    await conn.execute("CHECKPOINT")
    await conn.close()
    each = (table + by_seq + by_version) / count
    return (
        f"Postgres: filled by COPY in {filled:.0f} s ({count / filled:,.0f} events/s). Table "
        f"{table / 1e9:.2f} GB, index on seq {by_seq / 1e9:.2f} GB, index on stream and version "
        f"{by_version / 1e9:.2f} GB: {each:.0f} bytes an event, of which the payload is about 175. "
        f"Streams {(streams + by_name) / 1e6:.1f} MB. First VACUUM (ANALYZE) of it all: "
        f"{vacuum:.1f} s"
    )


async def _small(url: str) -> float:
    async with open_store(url) as store:
        return await _append(store, _new_streams(), delta)


async def _vacuumed(url: str) -> str:
    conn = await pg.connect(url, statement_timeout="0")
    start = time.perf_counter()
    await conn.execute("VACUUM event")
    seconds = time.perf_counter() - start
    await conn.execute("CHECKPOINT")
    await conn.close()
    return f"; another one after the rounds: {seconds:.2f} s."


def _sqlite(count: int) -> Found:
    found = Found()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _filled(folder / "long.db", count) as (long, filled):
            for turn in range(ROUNDS):
                with _filled(folder / f"{turn}.db", BLOCK) as (short, _):
                    found.empty.append(uvloop.run(_round(f"sqlite:///{short}", BLOCK)))
                found.long.append(uvloop.run(_round(f"sqlite:///{long}", count)))
            size = long.stat().st_size
    found.said = (
        f"SQLite: filled in {filled:.0f} s ({count / filled:,.0f} events/s). The file has "
        f"{size / 1e9:.2f} GB: {size / count:.0f} bytes an event."
    )
    return found


@contextmanager
def _filled(path: Path, count: int) -> Iterator[tuple[Path, float]]:
    start = time.perf_counter()
    fill_sqlite(path, count)
    yield path, time.perf_counter() - start


if __name__ == "__main__":
    main()

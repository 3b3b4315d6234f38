"""How many bytes do 1,000 tokens take, in the tables and in the write-ahead log?"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from app.events import catalogue as c
from app.events import pg, sqlite
from app.events.codec import new
from app.events.envelope import NewEvent, thread_stream
from app.events.ids import uuid7
from app.events.logstore import LogStore
from app.events.postgres import PostgresStore
from app.events.sqlite import SqliteBackend, SqliteStore
from app.events.store import Append
from bench.questions.writers import server_version
from bench.report import Report
from tests.support.postgres import Cluster, cluster, new_database

TOKENS = 1_000
ANSWERS = 64
AN_EVENT = (1, 3, 8, 16, TOKENS)
WORDS = (" the", " of", " answer", " to", " a", " question", " is", " that", ",", " committed")
STEP_MS = 16.7

#: Name -> answers written side by side, whose events share commits.
WAYS = {"alone": 1, "32 together": 32}


def main() -> None:
    """Measure and publish."""
    rows: list[list[Any]] = []
    with cluster(full_page_writes="on", autovacuum="off", max_wal_size="8GB") as server:
        for an_event in AN_EVENT:
            for name, together in WAYS.items():
                table, wal = uvloop.run(_sqlite(an_event, together))
                heap, pg_wal = uvloop.run(_postgres(server, an_event, together))
                data = sum(len(event.data) for event in _answer("r" * 36, an_event))
                what = f"{an_event:,}, {name}" if an_event < TOKENS else f"whole text, {name}"
                rows.append([what, -(-TOKENS // an_event), data / 1e3, table, wal, heap, pg_wal])
        version = uvloop.run(server_version(server))
    sqlite_whole, postgres_whole = rows[-1][3], rows[-1][5]
    Report(
        name="questions-sizes",
        title=f"Kilobytes that {TOKENS:,} tokens take",
        columns=[
            "tokens an event, answers",
            "events",
            "payload kB",
            "SQLite kB",
            "SQLite WAL kB",
            "Postgres kB",
            "Postgres WAL kB",
            "SQLite / whole text",
            "Postgres / whole text",
        ],
        rows=[[*row, row[3] / sqlite_whole, row[5] / postgres_whole] for row in rows],
        notes=[
            f"{ANSWERS} answers of {TOKENS:,} tokens with ids and times, 4.3 characters a token, "
            "written through the stores as the engine writes them, one commit for each step of "
            "all answers that are written side by side. kB of 1,000 bytes for one answer. Tables: "
            "growth of the event table and its indexes (Postgres), of the file after a checkpoint "
            "(SQLite). WAL: all that was written to it, before any checkpoint.",
            f"{version}: the WAL has whole pages after a checkpoint, on top of this. SQLite writes "
            "every page that a commit touches to the WAL, then once more into the file at the "
            "next checkpoint.",
        ],
    ).publish()


def _answer(request: str, an_event: int) -> Iterator[NewEvent]:
    draw = random.Random(7)
    for batch, index in enumerate(range(0, TOKENS, an_event)):
        count = min(an_event, TOKENS - index)
        payload = c.TokensGenerated(
            request=request,
            epoch=1,
            batch=batch,
            index=index,
            tokens=[draw.randrange(49_152) for _ in range(count)],
            text="".join(draw.choice(WORDS) for _ in range(count)),
            offsets=[round((index + n) * STEP_MS, 1) for n in range(count)],
        )
        yield new(payload, actor="engine:worker-1", request=request)


async def _write(store: LogStore, an_event: int, together: int) -> None:
    """Write the answers' tokens as events of the same shape, without the queue around them."""
    for _ in range(ANSWERS // together):
        threads = [thread_stream(uuid7()) for _ in range(together)]
        answers = [list(_answer(uuid7(), an_event)) for _ in threads]
        for step in zip(*answers, strict=True):
            appends = [
                Append(stream=thread, events=[NewEvent(**_free(event))])
                for thread, event in zip(threads, step, strict=True)
            ]
            await store.append_many(appends)


def _free(event: NewEvent) -> dict[str, Any]:
    """The event under a type that needs no claim; its name is stored once."""
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    return fields | {"type": "tokens.measured"}


async def _sqlite(an_event: int, together: int) -> tuple[float, float]:
    """Kilobytes for an answer in the file and in the WAL."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.db"
        store = await SqliteStore.open(path, synchronous="normal")
        backend = store._backend
        assert isinstance(backend, SqliteBackend)
        await backend._save("TRUNCATE")
        before, sqlite.CHECKPOINT_BYTES = path.stat().st_size, 1 << 60
        await _write(store, an_event, together)
        wal = backend._wal_bytes()
        await backend._save("TRUNCATE")
        after = path.stat().st_size
        await store.aclose()
    return (after - before) / ANSWERS / 1e3, wal / ANSWERS / 1e3


async def _postgres(server: Cluster, an_event: int, together: int) -> tuple[float, float]:
    """Kilobytes for an answer in table and indexes, and in the WAL."""
    url = await new_database(server)
    store = await PostgresStore.open(url, synchronous="normal")
    conn = await pg.connect(url)
    await conn.execute("CHECKPOINT")
    before, start = await conn.fetchrow(
        "SELECT pg_total_relation_size('event'), pg_current_wal_insert_lsn()::text"
    )
    await _write(store, an_event, together)
    after, wal = await conn.fetchrow(
        "SELECT pg_total_relation_size('event'), pg_current_wal_insert_lsn() - $1::text::pg_lsn",
        start,
    )
    await conn.close()
    await store.aclose()
    return (after - before) / ANSWERS / 1e3, float(wal) / ANSWERS / 1e3


if __name__ == "__main__":
    main()

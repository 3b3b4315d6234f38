"""Verifying a log in SQLite on one core, beside the hashing alone."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from app.events import catalogue as c
from app.events.codec import new
from app.events.envelope import NewEvent, thread_stream
from app.events.erasure import plan_seqs, redact
from app.events.ids import uuid7
from app.events.leaf import leaves
from app.events.merkle import Merkle
from app.events.seal import head, seal_now
from app.events.sqlite import SqliteStore
from app.events.store import Append
from app.events.verify import verify
from bench.report import Goal, Report

EVENTS = 200_000
THREADS = 100
BATCH = 20
REDACTED = 100
ROUNDS = 5
TEXT = "A few words, as long as the text of a batch of tokens is. " * 2


def main() -> None:
    """Measure and publish."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.db"
        uvloop.run(_fill(path))
        sound = _best(lambda: _verify(path))
        hashing = _best(lambda: _hash(path))
        check = _best(lambda: _check(path))
        uvloop.run(_redact(path))
        redacted = _best(lambda: _verify(path))
    Report(
        name="verify",
        title="Verify: a log in SQLite, one core",
        columns=["", "events/s", "events per second of processor time"],
        rows=[
            ["verify, with a saved head", *sound],
            [f"verify, an event in {REDACTED} redacted", *redacted],
            ["hashes and tree alone, rows in memory", *hashing],
            ["SQLite's integrity_check alone", *check],
        ],
        goals=[
            Goal("verify, events/s", sound[0], 100_000),
            Goal("verify with redactions, events/s", redacted[0], 100_000),
        ],
        notes=[
            f"Median of {ROUNDS} rounds over {EVENTS:,} events, the process held to one core, the "
            "file in the operating system's cache. Verify reads every row, recomputes its leaf, "
            "the trees of all seals and the saved head, and ends with SQLite's own check.",
        ],
    ).publish()


def _best(measure: Callable[[], Awaitable[int]]) -> tuple[float, float]:
    """Events a second, and events a second of processor time."""
    rates = []
    for _ in range(ROUNDS):
        wall, used = time.perf_counter(), time.process_time()
        events = uvloop.run(_awaited(measure()))
        rates.append((events / (time.perf_counter() - wall), events / (time.process_time() - used)))
    return (statistics.median(r[0] for r in rates), statistics.median(r[1] for r in rates))


async def _awaited(work: Awaitable[int]) -> int:
    return await work


async def _fill(path: Path) -> None:
    store = await SqliteStore.open(path, synchronous="normal")
    names = [(thread_stream(uuid7()), uuid7()) for _ in range(THREADS)]
    for at in range(0, EVENTS, THREADS * BATCH):
        await store.append_many(
            [Append(stream=s, events=[_event(m) for _ in range(BATCH)]) for s, m in names]
        )
        if at % 10_000 == 0:
            await seal_now(store)
    await store.aclose()


def _event(message: str) -> NewEvent:
    return new(c.MessageDelta(message=message, text=TEXT), actor="handler:on_message", run=message)


async def _redact(path: Path) -> None:
    store = await SqliteStore.open(path, synchronous="normal")
    seqs = range(1, await store.head(), REDACTED)
    await redact(store, await plan_seqs(store, seqs), reason="measured")
    await store.aclose()


async def _verify(path: Path) -> int:
    store = await SqliteStore.open(path, read_only=True)
    report = await verify(store, expected=await head(store))
    assert report.ok, report.problems
    await store.aclose()
    return report.events


async def _check(path: Path) -> int:
    store = await SqliteStore.open(path, read_only=True)
    assert await store.check() == []
    count = await store.head()
    await store.aclose()
    return count


_kept: list[Any] = []


async def _hash(path: Path) -> int:
    """What no program that does the same in Python can go below."""
    if not _kept:
        store = await SqliteStore.open(path, read_only=True)
        _kept.extend(await store.rows(after=0, limit=20_000))
        await store.aclose()
    tree = Merkle()
    for _ in range(EVENTS // len(_kept)):
        found = leaves([row[0] for row in _kept], [row[1] for row in _kept])
        assert found == [row[2] for row in _kept]
        tree.extend(found)
    tree.root()
    return EVENTS // len(_kept) * len(_kept)


if __name__ == "__main__":
    main()

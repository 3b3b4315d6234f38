"""Folding the log: rebuilding the read models, and opening a long conversation."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from app.events import catalogue as c
from app.events.codec import new
from app.events.envelope import Event, NewEvent, thread_stream
from app.events.ids import uuid7
from app.events.logstore import LogStore
from app.events.open import open_store
from app.projections import state
from app.projections.database import Where
from app.projections.rebuild import rebuild
from app.projections.views import named
from bench.report import Goal, Report
from tests.support.postgres import cluster, new_database

TURNS = 4_000
"""Questions asked: five in each conversation, two at a time."""

BATCHES = 50
"""Batches of tokens of an answer."""

LONG = 10_000
"""Events of the long conversation."""

ROUNDS = 5
TEXT = " some words that"


def main() -> None:
    """Measure and publish."""
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster(shared_buffers="256MB", synchronous_commit="on") as postgres,
    ):
        home = Path(folder)
        url = asyncio.run(new_database(postgres))
        events = list(_log())
        sqlite = uvloop.run(_measure(str(home / "log.db"), home / "views", events))
        server = uvloop.run(_measure(url, url, events))
    columns = ["", "events/s", "slowest", "open p50 ms", "open max ms"]
    rows = [
        ["SQLite", *sqlite["rates"], *sqlite["opens"]],
        ["Postgres", *server["rates"], *server["opens"]],
    ]
    Report(
        name="rebuild",
        title="Read models: rebuild, and opening a long conversation",
        columns=columns,
        rows=rows,
        goals=[
            Goal("rebuild, SQLite, events/s", sqlite["rates"][0], 100_000),
            Goal("rebuild, Postgres, events/s", server["rates"][0], 50_000),
            Goal("open, SQLite, ms", sqlite["opens"][0], 50, at_least=False),
            Goal("open, Postgres, ms", server["opens"][0], 50, at_least=False),
        ],
        notes=[
            f"Median and slowest of {ROUNDS} rebuilds of history, timeline, requests and metrics "
            f"together, from a log of {len(events):,} events: {TURNS:,} questions in {TURNS // 5} "
            f"conversations, each answered in {BATCHES} batches of four tokens. Log and read "
            "models are in the same kind of database; Postgres shares the machine.",
            f"Opening: reading and folding a conversation of {LONG:,} events, {4 * ROUNDS} times.",
        ],
    ).publish()


async def _measure(url: str, where: Where, events: list[Event]) -> dict[str, Any]:
    async with open_store(url, synchronous="normal") as store:
        await _fill(store, events)
        long = events[-1].stream.removeprefix("thread/")
        opens = [await _open(store, long) for _ in range(4 * ROUNDS)]
    async with open_store(url, read_only=True) as store:
        rates = []
        for _ in range(ROUNDS):
            done = await rebuild(store, where, named(None))
            rates.append(done.events / done.seconds)
    return {
        "rates": [statistics.median(rates), min(rates)],
        "opens": [statistics.median(opens) * 1e3, max(opens) * 1e3],
    }


async def _fill(store: LogStore, events: list[Event]) -> None:
    for start in range(0, len(events), 5000):
        some = events[start : start + 5000]
        await store.load(some, [b"0123456789abcdef"] * len(some))


async def _open(store: LogStore, thread: str) -> float:
    began = time.perf_counter()
    found = await state.load(store, thread)
    assert found is not None and found.version == LONG
    return time.perf_counter() - began


def _log() -> Iterator[Event]:
    """Conversations, two at a time, then the long one."""
    seq = 0
    versions: dict[str, int] = {}

    def event(stream: str, entry: NewEvent) -> Event:
        nonlocal seq
        seq += 1
        versions[stream] = versions.get(stream, 0) + 1
        return Event(
            seq=seq,
            stream=stream,
            version=versions[stream],
            type=entry.type,
            schema=entry.schema,
            time=1_700_000_000_000_000_000 + seq * 1_000_000,
            actor=entry.actor,
            request=entry.request,
            run=entry.run,
            cause=entry.cause,
            data=entry.data,
        )

    for _ in range(TURNS // 10):
        pair = [thread_stream(uuid7()) for _ in range(2)]
        for turn in range(5):
            for both in zip(*(_turn(turn == 0, BATCHES) for _ in pair), strict=True):
                for stream, entry in zip(pair, both, strict=True):
                    yield event(stream, entry)
    stream = thread_stream(uuid7())
    while versions.get(stream, 0) < LONG:
        left = LONG - versions.get(stream, 0)
        for entry in list(_turn(stream not in versions, BATCHES))[:left]:
            yield event(stream, entry)


def _turn(first: bool, batches: int) -> Iterator[NewEvent]:
    """What a question and its answer write."""
    asked, run, answer, request = uuid7(), uuid7(), uuid7(), uuid7()
    if first:
        yield new(c.ThreadCreated(owner="local"), actor="user:local")
    question = c.MessagePosted(message=asked, role="user", content=f"Question {asked}: {TEXT * 5}?")
    yield new(question, actor="user:local")
    yield new(c.RunStarted(run=run, hook="on_message", node="node", message=asked), run=run)
    yield new(c.MessageStarted(message=answer, request=request), run=run)
    queued = c.RequestQueued(request=request, params=c.SamplingParams(seed=1))
    yield new(queued, request=request, run=run)
    yield new(c.RequestClaimed(request=request, epoch=1, worker="w"), request=request)
    started = c.RequestStarted(
        request=request, epoch=1, model="m", weights="w", prompt_tokens=70, queue_ms=1.5
    )
    yield new(started, request=request)
    for batch in range(batches):
        tokens = c.TokensGenerated(
            request=request,
            epoch=1,
            batch=batch,
            index=4 * batch,
            tokens=[1000, 200, 3000, 417],
            text=TEXT,
            offsets=[0.1, 0.2, 0.3, 0.4],
        )
        yield new(tokens, actor="engine:w", request=request)
    usage = c.Usage(prompt_tokens=70, completion_tokens=4 * batches)
    finished = c.RequestFinished(
        request=request,
        epoch=1,
        reason="stop",
        text=TEXT * batches,
        batches=batches,
        usage=usage,
        timings=c.Timings(queue_ms=1.5, prefill_ms=20.0, decode_ms=900.0),
        digest="0" * 64,
    )
    yield new(finished, actor="engine:w", request=request)
    yield new(c.RunCompleted(run=run), run=run)


if __name__ == "__main__":
    main()

"""How soon does another node see a commit, and what does telling it cost the writers?

The reader is the store itself, opened in another process: its listening connection, its tail. It is
told by notifications at most every so often, or only looks by itself every so often.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from app.events import postgres_sql as sql
from app.events import postgres_tail
from app.events.postgres import PostgresStore
from app.events.postgres_tail import Notifier, channel_of
from bench.questions.writers import Pace, Writer, connections, empty_log, server_version
from bench.report import Report, percentile
from tests.support.postgres import Cluster, cluster

ROUNDS = 4
SECONDS = 1.5
WRITERS = 4
LISTENERS = 8
PAUSE = 0.02
"""Between commits of the quiet writer."""

NEVER = 3600.0

#: Name, seconds between notifications (None: none; 0: one in each append), seconds between looks.
WAYS: list[tuple[str, float | None, float]] = [
    ("nobody is told or looks", None, NEVER),
    ("notified every 1 ms at most", 0.001, NEVER),
    ("notified every 2 ms at most", 0.002, NEVER),
    ("notified every 5 ms at most", 0.005, NEVER),
    ("notified every 10 ms at most", 0.010, NEVER),
    ("looks every 2 ms", None, 0.002),
    ("looks every 10 ms", None, 0.010),
    ("looks every 50 ms", None, 0.050),
    ("notified in each append's transaction", 0.0, NEVER),
]

Commits = list[tuple[int, int]]
"""Seq and monotonic nanoseconds, of commits or of what was seen."""


def main() -> None:
    """Measure and publish."""
    with cluster() as server:
        rows = _wakes(server)
        version = uvloop.run(server_version(server))
        _publish_wake(rows, version)
        _publish_notify(server, version)


def _publish_wake(rows: list[list[Any]], version: str) -> None:
    Report(
        name="questions-wake",
        title="From a commit to another process that follows the log",
        columns=[
            "the other process",
            "quiet p50 ms",
            "quiet p99 ms",
            "busy p50 ms",
            "busy p99 ms",
            "commits/s, busy",
            "of the commits/s of writers alone",
        ],
        rows=rows,
        notes=[
            f"{version}, default settings, fsync on; {ROUNDS} rounds of {SECONDS} s each, the ways "
            "in turn: times over all rounds, medians of rates and of their ratios in a round. From "
            "the moment a commit is answered to the moment the event is in the feed of the other "
            f"process, its rows read from the database. Quiet: a commit every {PAUSE * 1e3:.0f} "
            f"ms; busy: {WRITERS} writers without pause, one event a commit.",
            "Notifications are sent by the store's own notifier after commits: at once if the last "
            "one was long enough ago. All share two cores, so a wake costs the writers time.",
        ],
    ).publish()


def _wakes(server: Cluster) -> list[list[Any]]:
    quiet: list[list[float]] = [[] for _ in WAYS]
    busy: list[list[float]] = [[] for _ in WAYS]
    rates: list[list[float]] = [[] for _ in WAYS]
    for _ in range(ROUNDS):
        for n, (_, told, looks) in enumerate(WAYS):
            if looks != NEVER or told is not None:
                quiet[n] += _measure(server, told, looks, writers=1, pause=PAUSE)[0]
            late, rate = _measure(server, told, looks, writers=WRITERS, pause=0.0)
            busy[n] += late
            rates[n].append(rate)
    return [
        [
            name,
            *_percentiles(quiet[n]),
            *_percentiles(busy[n]),
            statistics.median(rates[n]),
            statistics.median(one / of for one, of in zip(rates[n], rates[0], strict=True)),
        ]
        for n, (name, _, _) in enumerate(WAYS)
    ]


def _percentiles(late: list[float]) -> list[Any]:
    return [percentile(late, 50), percentile(late, 99)] if late else ["", ""]


def _measure(
    server: Cluster, told: float | None, looks: float, *, writers: int, pause: float
) -> tuple[list[float], float]:
    """Milliseconds from commits to the sight of them, and commits a second."""
    url = uvloop.run(empty_log(server))
    if told is None and looks == NEVER:
        return [], uvloop.run(_write(url, told, writers, pause))[1]
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    child = context.Process(target=_follower, args=(theirs, url, looks))
    child.start()
    theirs.close()  # so that its death is noticed
    mine.recv()  # it listens
    commits, rate = uvloop.run(_write(url, told, writers, pause))
    mine.send(None)
    seen: Commits = mine.recv()
    child.join()
    return _delays(commits, seen), rate


def _delays(commits: Commits, seen: Commits) -> list[float]:
    """Milliseconds from each commit to the first sight of it."""
    found, at = [], 0
    for seq, when in sorted(commits):
        while at < len(seen) and seen[at][0] < seq:
            at += 1
        if at < len(seen):  # else it was the last, and only noticed when all was over
            found.append((seen[at][1] - when) / 1e6)
    return found


async def _write(url: str, told: float | None, writers: int, pause: float) -> tuple[Commits, float]:
    async with AsyncExitStack() as stack:
        conns = await stack.enter_async_context(connections(url, writers))
        [ears] = await stack.enter_async_context(connections(url, 1))
        ring = await _notifier(ears, told, stack)
        commits: Commits = []
        start = time.perf_counter()
        until = start + SECONDS
        await asyncio.gather(*(_commit(c, until, pause, told == 0, ring, commits) for c in conns))
        rate = len(commits) / (time.perf_counter() - start)
        await asyncio.sleep(0.1)
    return commits, rate


async def _commit(
    conn: Any,
    until: float,
    pause: float,
    inside: bool,
    ring: Callable[[int], None],
    commits: Commits,
) -> None:
    writer = _Notifying(conn, channel_of("public")) if inside else Writer(conn, **_ONE)
    while time.perf_counter() < until:
        await writer.write()
        now = time.monotonic_ns()
        commits.append((writer.head, now))
        ring(writer.head)
        if pause:
            await asyncio.sleep(pause)


_ONE = {"streams": 1, "events": 1}


class _Notifying(Writer):
    """The bad example: tells others in the transaction that appends."""

    def __init__(self, conn: Any, channel: str) -> None:
        super().__init__(conn, **_ONE)
        self.statement = f"{sql.APPEND_BATCH}, pg_notify('{channel}', '')"


class _Caller:
    """Runs the notifier's statement on one connection."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn

    async def fetchval(self, statement: str, *args: Any, patience: float) -> Any:
        return await self._conn.fetchval(statement, *args)


async def _notifier(conn: Any, told: float | None, stack: AsyncExitStack) -> Callable[[int], None]:
    if not told:
        return lambda head: None
    postgres_tail.NOTIFY_SECONDS = told
    notifier = Notifier(_Caller(conn), channel_of("public"))  # type: ignore[arg-type]
    task = asyncio.create_task(notifier.run())
    stack.push_async_callback(_end, task)
    return notifier.ring


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _follower(pipe: Connection, url: str, looks: float) -> None:
    """In a process of its own: says when each event came into its feed."""
    postgres_tail.POLL_SECONDS = looks

    async def follow() -> None:
        store = await PostgresStore.open(url, read_only=True)
        tail, seen = store._tail, []
        advance = tail._advance

        def noting(events: Any) -> None:
            advance(events)
            seen.append((events[-1].seq, time.monotonic_ns()))

        tail._advance = noting  # type: ignore[method-assign]
        await asyncio.sleep(0.5)  # until it listens
        pipe.send(None)
        await asyncio.to_thread(pipe.recv)
        pipe.send(seen)
        await store.aclose()

    uvloop.run(follow())


# --------------------------------------------------------------------- what it costs writers


def _publish_notify(server: Cluster, version: str) -> None:
    rows = [row for logs in (1, 2) for row in uvloop.run(_costs(server, logs))]
    Report(
        name="questions-notify",
        title="Telling others: outside the append and inside it",
        columns=[
            "logs, way",
            "commits/s",
            "commit p50 ms",
            "commit p99 ms",
            "of the commits/s without",
        ],
        rows=rows,
        notes=[
            f"{version}, default settings, fsync on; {ROUNDS} rounds of {SECONDS} s, the ways in "
            "turn; medians of rates and of their ratios in a round, times over all. Every log is a "
            f"database of its own on one server, with {WRITERS} writers and {LISTENERS} listening "
            "connections; all logs are written at the same time.",
            "A transaction that notifies holds a lock of the whole server until its commit is "
            "flushed, so logs that have nothing in common wait for each other.",
        ],
    ).publish()


async def _costs(server: Cluster, logs: int) -> list[list[Any]]:
    ways = (("no notifications", None), ("outside, 5 ms", 0.005), ("inside", 0.0))
    found: list[list[Pace]] = [[] for _ in ways]
    for _ in range(ROUNDS):
        for (_, told), paces in zip(ways, found, strict=True):
            paces.append(await _many_logs(server, logs, told))
    rows = []
    for (name, _), paces in zip(ways, found, strict=True):
        took = Pace([seconds for pace in paces for seconds in pace.took])
        of = [one.rate / alone.rate for one, alone in zip(paces, found[0], strict=True)]
        rate = statistics.median(pace.rate for pace in paces)
        rows.append([f"{logs}, {name}", rate, took.at(50), took.at(99), statistics.median(of)])
    return rows


async def _many_logs(server: Cluster, logs: int, told: float | None) -> Pace:
    pace, works = Pace(), []
    async with AsyncExitStack() as stack:
        for _ in range(logs):
            url = await empty_log(server)
            conns = await stack.enter_async_context(connections(url, WRITERS))
            ears = await stack.enter_async_context(connections(url, LISTENERS + 1))
            for ear in ears[1:]:
                await ear.add_listener(channel_of("public"), lambda *_: None)
            ring = await _notifier(ears[0], told, stack)
            for conn in conns:
                inside = told == 0
                writer = _Notifying(conn, channel_of("public")) if inside else Writer(conn, **_ONE)
                await writer.write()
                works.append((writer, ring))
        start = time.perf_counter()
        await asyncio.gather(*(writer.run(start + SECONDS, pace, ring) for writer, ring in works))
        pace.seconds = time.perf_counter() - start
    return pace


if __name__ == "__main__":
    main()

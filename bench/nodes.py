"""Two nodes on one Postgres: how soon a client of the other one sees a post, and an answer.

Quiet, under load, with a client that does not read, and with Postgres restarted in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import tempfile
import time
from contextlib import AsyncExitStack, aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from websockets.asyncio.client import ClientConnection, connect

from app.events.ids import uuid7
from app.transport.client import Client
from app.transport.protocol import PROTOCOL, Item, Live
from bench.harness import everlog
from bench.report import Goal, Report, percentile
from tests.support.postgres import Cluster, cluster, new_database

STREAMS = 32
TOKENS_PER_SECOND = 50
SECONDS = 12.0
RESTART_SECONDS = 24.0
PROBES = 200
PAUSE = 0.03
"""Between two probes, on average."""

HANDLER = """
import asyncio
from app import Message, on_message

@on_message
async def answer(asked: Message) -> None:
    count, pause = asked.content.split()[:2]
    message = Message(content="")
    for number in range(int(count)):
        await message.stream_token(f"{number} ")
        await asyncio.sleep(float(pause))
    await message.update()
"""

COLUMNS = [
    "",
    "post, same node p50 ms",
    "p99 ms",
    "other node p50 ms",
    "p99 ms",
    "first token, same node p50 ms",
    "p99 ms",
    "other node p50 ms",
    "p99 ms",
    "other / same, p50",
    "other / same, p99",
    "tokens/s",
    "longest gap ms",
]


class Seen(msgspec.Struct):
    """When a client saw a post and the first token of its answer; ``time.perf_counter``."""

    posted: float = 0.0
    first: float = 0.0


class Streamed(msgspec.Struct):
    """What a client saw of an answer."""

    text: str = ""
    whole: str = ""
    at: list[float] = []
    end: str = ""

    @property
    def gap(self) -> float:
        """Longest time without anything new, seconds."""
        return max((b - a for a, b in pairwise(self.at)), default=0.0)


class Clients(msgspec.Struct):
    """Who takes part; pairs are a client of each node."""

    ports: tuple[int, int]
    poster: Client
    same: Client
    other: Client
    senders: tuple[Client, Client]
    readers: tuple[Client, Client]
    slow: list[ClientConnection] = []


def main() -> None:
    """Measure and publish."""
    with cluster() as server, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "chat.py").write_text(HANDLER)
        url = asyncio.run(new_database(server))
        arguments = [str(Path(folder) / "chat.py"), "--no-engine"]
        with (
            everlog(Path(folder), {}, *arguments, database=url) as (a, _),
            everlog(Path(folder), {}, *arguments, database=url) as (b, _),
        ):
            rows, restarts = uvloop.run(_run(server, (a, b)))
    quiet = rows[0]
    Report(
        name="nodes",
        title="Two nodes on one Postgres: from a post to a client of the other node",
        columns=COLUMNS,
        rows=rows,
        goals=[
            Goal("quiet: post at the other node, p99 ms", quiet[4], 50, at_least=False),
            Goal("busy: post at the other node, p99 ms", rows[1][4], 100, at_least=False),
        ],
        notes=[
            "Two `everlog serve --no-engine`, Postgres with default settings and fsync on, and all "
            f"clients in a third process share the machine. {PROBES} probes in each row: a client "
            "of one node posts to a thread of its own; the clock runs until a second client of "
            "that node, and one of the other, have the event, and the first token of the answer.",
            f"Busy: {STREAMS} answers stream {TOKENS_PER_SECOND} tokens a second each, half of "
            "them on each node, every one followed by a client of the other node; their texts are "
            "checked token for token. A gap is the time between two pieces of an answer.",
            *restarts,
        ],
    ).publish()


async def _run(server: Cluster, ports: tuple[int, int]) -> tuple[list[list[Any]], list[str]]:
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client(urls[node], patience=120))
            for node in (0, 0, 1, 0, 1, 0, 1)
        ]
        poster, same, other, *pairs = clients
        who = Clients(ports, poster, same, other, (pairs[0], pairs[1]), (pairs[2], pairs[3]))
        await _probe(who)  # warm
        rows = [["quiet", *_summary([await _probe(who) for _ in range(PROBES)]), "", ""]]
        rows.append(["busy", *await _busy(who)])
        async with _slow_clients(who):
            rows.append(["busy, and two clients that do not read", *await _busy(who)])
        restarts = await _restarted(server, who)
    return rows, restarts


# ----------------------------------------------------------------------------------- probes


async def _probe(who: Clients) -> tuple[Seen, Seen]:
    """Seconds from a post to what a client of the same node and of the other one saw."""
    thread, mark = uuid7(), uuid7()
    await asyncio.sleep(PAUSE * 2 * random.random())
    ready = [asyncio.Event(), asyncio.Event()]
    watching = [
        asyncio.create_task(_watch(client, thread, mark, bell))
        for client, bell in zip((who.same, who.other), ready, strict=True)
    ]
    for bell in ready:
        await bell.wait()
    start = time.perf_counter()
    await who.poster.post(thread, f"3 0.001 {mark}")
    same, other = await asyncio.gather(*watching)
    for seen in (same, other):
        seen.posted -= start
        seen.first -= start
    return same, other


async def _watch(client: Client, thread: str, mark: str, ready: asyncio.Event) -> Seen:
    seen = Seen()
    async with aclosing(client.follow(thread)) as items:
        async for item in items:
            if isinstance(item, Live):
                ready.set()
            elif isinstance(item, Item):
                if item.type == "message.posted" and mark.encode() in bytes(item.data):
                    seen.posted = time.perf_counter()
                elif item.type in ("message.delta", "message.completed") and not seen.first:
                    seen.first = time.perf_counter()
                elif item.type == "run.completed":
                    break
    return seen


def _summary(probes: list[tuple[Seen, Seen]]) -> list[float]:
    columns = [
        [getattr(seen[node], what) for seen in probes]
        for what in ("posted", "first")
        for node in (0, 1)
    ]
    times = [percentile(column, at) * 1e3 for column in columns for at in (50, 99)]
    return [*times, times[2] / times[0], times[3] / times[1]]


# ------------------------------------------------------------------------------------- load


async def _busy(who: Clients) -> list[float]:
    """Probe while answers stream."""
    load = asyncio.create_task(_load(who, SECONDS))
    await asyncio.sleep(1.0)
    probes: list[tuple[Seen, Seen]] = []
    while len(probes) < PROBES and not load.done():
        probes.append(await _probe(who))
    streamed, seconds = await load
    gap = max(one.gap for one in streamed)
    count = sum(one.text.count(" ") for one in streamed)
    return [*_summary(probes), count / seconds, gap * 1e3]


async def _load(who: Clients, seconds: float) -> tuple[list[Streamed], float]:
    """Answers side by side, checked token for token; and the seconds they took."""
    count = int(seconds * TOKENS_PER_SECOND)
    start = time.perf_counter()
    streamed = await asyncio.gather(*(_stream(who, node % 2, count) for node in range(STREAMS)))
    took = time.perf_counter() - start
    expected = "".join(f"{number} " for number in range(count))
    for one in streamed:
        assert one.end == "run.completed", one.end
        assert one.text == expected, "tokens are missing, or came twice"
        assert one.whole == expected
    return streamed, took


async def _stream(who: Clients, node: int, count: int) -> Streamed:
    """Post at a node, follow at the other."""
    thread, seen = uuid7(), Streamed()
    for slow in who.slow:
        await slow.send(msgspec.json.encode({"t": "open", "thread": thread}), text=True)
    posting = asyncio.create_task(
        who.senders[node].post(thread, f"{count} {1 / TOKENS_PER_SECOND}")
    )
    async with aclosing(who.readers[1 - node].follow(thread)) as items:
        async for item in items:
            if isinstance(item, Item):
                _note(item, seen)
            if seen.end:
                break
    await posting
    return seen


def _note(item: Item, seen: Streamed) -> None:
    if item.type == "message.delta":
        seen.at.append(time.perf_counter())
        seen.text += msgspec.json.decode(item.data)["text"]
    elif item.type == "message.completed":
        seen.whole = msgspec.json.decode(item.data)["content"]
    elif item.type in ("run.completed", "run.failed", "run.interrupted"):
        seen.end = item.type


@contextlib.asynccontextmanager
async def _slow_clients(who: Clients) -> Any:
    """At each node a client that asks for new answers and never reads what it gets."""
    async with AsyncExitStack() as stack:
        for port in who.ports:
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            url = f"ws://127.0.0.1:{port}/ws"
            slow = await stack.enter_async_context(
                connect(url, sock=sock, max_queue=1, proxy=None, close_timeout=0.1)
            )
            await slow.send(f'{{"t":"hello","protocol":"{PROTOCOL}","token":null}}')
            await slow.recv()
            who.slow.append(slow)
        yield
        who.slow.clear()


# ---------------------------------------------------------------------------------- restarts


async def _restarted(server: Cluster, who: Clients) -> list[str]:
    """Restart Postgres twice while answers stream; what to say about it."""
    load = asyncio.create_task(_load(who, RESTART_SECONDS))
    said, windows = [], []
    for mode in ("fast", "immediate"):
        await asyncio.sleep(RESTART_SECONDS / 4)
        start = time.perf_counter()
        await asyncio.to_thread(server.stop, mode)
        post = asyncio.create_task(_timed_post(who))
        await asyncio.to_thread(server.start)
        away = time.perf_counter() - start
        answered = await post
        windows.append((mode, start, away, answered))
    streamed, _ = await load
    for mode, start, away, answered in windows:
        pause = max(_pause(one.at, start, start + away) for one in streamed)
        said.append(
            f"Postgres restarted in mid-run ({mode}): away for {away:.2f} s; the longest pause of "
            f"an answer was {pause:.2f} s, {pause / away:.2f} times that; a post made meanwhile "
            f"was acknowledged {answered:.2f} s later. No token was lost or came twice in "
            f"{STREAMS} answers of {int(RESTART_SECONDS * TOKENS_PER_SECOND):,} tokens, and no "
            "client had to connect again."
        )
    reconnected = [c for c in (*who.readers, *who.senders) if c.connections != 1]
    assert not reconnected
    return said


async def _timed_post(who: Clients) -> float:
    start = time.perf_counter()
    await who.poster.post(uuid7(), "1 0")
    return time.perf_counter() - start


def _pause(at: list[float], start: float, end: float) -> float:
    """Longest gap that has some part between two times."""
    return max((b - a for a, b in pairwise(at) if b > start and a < end), default=0.0)


if __name__ == "__main__":
    main()

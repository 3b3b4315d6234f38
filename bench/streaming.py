"""Streaming: 100 WebSocket clients, 200 tokens each, every one durable before it is visible.

Beside it a bare ``websockets`` server sends the same frames from memory to the same clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection, serve

from app.events.ids import uuid7
from bench.harness import client, cpu_seconds, everlog
from bench.report import Goal, Report, percentile

CLIENTS = 100
TOKENS = 200
ROUNDS = 8
TOKEN = "token "

HANDLER = f"""
import asyncio
from app import Message, on_message

@on_message
async def answer(asked: Message) -> None:
    message = Message(content="")
    for _ in range({TOKENS}):
        await message.stream_token("{TOKEN}")
        await asyncio.sleep(0)  # as a source of tokens does: others get their turn at each token
    await message.update()
"""

#: Name -> settings of the server.
WAYS = {
    "16 tokens an event": {},
    "1 token an event": {"EVERLOG_STREAM__MAX_TOKENS": "1", "EVERLOG_STREAM__FLOOR_MS": "0"},
}


class Sample(msgspec.Struct):
    """What the clients saw in all rounds: seconds."""

    seconds: list[float]
    first: list[float]
    frames: list[bytes]
    size: int = 0
    count: int = 0


def main(arguments: list[str] | None = None) -> None:
    """Measure and publish."""
    rows, goals = [], []
    for name, settings in WAYS.items():
        sample, cpu = _served(settings)
        everlog = _row(f"Everlog, {name}", sample, cpu)
        raw, raw_cpu = _raw(sample.frames)
        rows += [everlog, _row("websockets, same frames", raw, raw_cpu)]
        goals += [
            Goal(f"tokens/s, {name}", everlog[1], 100_000),
            Goal(f"TTFT p99 ms, {name}", everlog[4], 100, at_least=False),
        ]
    Report(
        name="streaming",
        title=f"Streaming: {CLIENTS} WebSocket clients, {TOKENS} tokens each",
        columns=[
            "",
            "tokens/s",
            "tokens per s of server CPU",
            "TTFT p50 ms",
            "TTFT p99 ms",
            "frames an answer",
        ],
        rows=rows,
        goals=goals,
        notes=[
            f"{ROUNDS} rounds after one to warm up; in each all {CLIENTS} clients post at once, to "
            "threads of their own. The clock runs from the first post to the last client's last "
            "frame; TTFT from a client's post to its first text. Everlog is one process with "
            "SQLite, synchronous=FULL, every event committed before it is sent; the bare server "
            "sends recorded frames and stores nothing. Clients run in a process of their own on "
            "the same two cores, so tokens per second of server CPU says what one core of a "
            "server could do.",
        ],
    ).publish()


def _row(name: str, sample: Sample, cpu: float) -> list[Any]:
    total = CLIENTS * TOKENS * len(sample.seconds)
    return [
        name,
        total / sum(sample.seconds),
        total / cpu,
        percentile(sample.first, 50) * 1e3,
        percentile(sample.first, 99) * 1e3,
        sample.count / (CLIENTS * len(sample.seconds)),
    ]


# --------------------------------------------------------------------------------- servers


def _served(settings: dict[str, str]) -> tuple[Sample, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "chat.py").write_text(HANDLER)
        arguments = [str(folder / "chat.py"), "--no-engine"]
        with everlog(folder, settings, *arguments) as (port, pid):
            return _clients(f"ws://127.0.0.1:{port}/ws", pid, raw=False)


def _raw(frames: list[bytes]) -> tuple[Sample, float]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    child = context.Process(target=_raw_server, args=(theirs, frames))
    child.start()
    try:
        assert child.pid is not None
        return _clients(f"ws://127.0.0.1:{mine.recv()}/", child.pid, raw=True)
    finally:
        child.terminate()
        child.join()


def _raw_server(pipe: Connection, frames: list[bytes]) -> None:
    async def answer(connection: ServerConnection) -> None:
        async for _ in connection:
            for frame in frames:
                await connection.send(frame, text=True)

    async def main() -> None:
        async with serve(answer, "127.0.0.1", 0, compression=None) as server:
            pipe.send(server.sockets[0].getsockname()[1])
            await server.serve_forever()

    uvloop.run(main())


# --------------------------------------------------------------------------------- clients


def _clients(url: str, pid: int, *, raw: bool) -> tuple[Sample, float]:
    """Run the clients in a process of their own; also returns the server's processor time."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    child = context.Process(target=_client_process, args=(theirs, url, raw))
    child.start()
    mine.recv()  # warm
    before = cpu_seconds(pid)
    mine.send(None)
    sample = msgspec.msgpack.decode(mine.recv(), type=Sample)
    cpu = cpu_seconds(pid) - before
    child.join()
    return sample, cpu


def _client_process(pipe: Connection, url: str, raw: bool) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(client(url, hello=not raw)) for _ in range(CLIENTS)
            ]
            await _round(clients, raw, Sample([], [], []))
            pipe.send("warm")
            await asyncio.to_thread(pipe.recv)
            sample = Sample([], [], [])
            for _ in range(ROUNDS):
                await _round(clients, raw, sample)
            pipe.send(msgspec.msgpack.encode(sample))

    uvloop.run(main())


async def _round(clients: list[ClientConnection], raw: bool, sample: Sample) -> None:
    threads = [uuid7() for _ in clients]
    if not raw:
        for one, thread in zip(clients, threads, strict=True):
            await one.send(msgspec.json.encode({"t": "open", "thread": thread}), text=True)
        for one in clients:
            while b'"live"' not in await one.recv(decode=False):
                pass
    start = time.perf_counter()
    pairs = zip(clients, threads, strict=True)
    await asyncio.gather(*(_answer(one, thread, sample) for one, thread in pairs))
    sample.seconds.append(time.perf_counter() - start)
    if not raw:
        for one, thread in zip(clients, threads, strict=True):
            await one.send(msgspec.json.encode({"t": "close", "thread": thread}), text=True)


async def _answer(one: ClientConnection, thread: str, sample: Sample) -> None:
    """Post, and read until the run has ended; checks that every token came."""
    post = {"t": "post", "id": uuid7(), "thread": thread, "content": "Go on."}
    keep: list[bytes] | None = [] if not sample.frames else None
    first, seen, ended, count = 0.0, 0, False, 0
    start = time.perf_counter()
    await one.send(msgspec.json.encode(post), text=True)
    while not ended:
        frame = await one.recv(decode=False)
        if not first and b'"message.delta"' in frame:
            first = time.perf_counter() - start
        ended = b'"run.completed"' in frame
        seen += frame.count(TOKEN.encode())
        count += 1
        sample.size += len(frame)
        if keep is not None:
            keep.append(frame)
    assert seen == 2 * TOKENS, f"{seen} tokens"  # once as deltas, once in message.completed
    sample.first.append(first)
    sample.count += count
    if keep is not None and not sample.frames:
        sample.frames = keep


if __name__ == "__main__":
    main()

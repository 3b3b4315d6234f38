"""Served: the engine through log and socket, beside the bare core with the same requests."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from websockets.asyncio.client import ClientConnection

from app.config import ChatConfig
from app.engine.frames import Add, CoreConfig, Failed, Step
from app.engine.hub import resolve
from app.engine.supervisor import CoreProcess
from app.events.catalogue import ChatMessage, SamplingParams
from app.events.ids import uuid7
from bench.harness import client, everlog
from bench.report import Goal, Report

MODEL = "smollm2-135m-instruct"
CONCURRENCY = (1, 8, 32)
OUTPUT = 128
ROUNDS = 3
PARAMS: dict[str, Any] = {"temperature": 0.0, "max_tokens": OUTPUT, "ignore_eos": True, "seed": 0}


def main(arguments: list[str] | None = None) -> None:
    """Measure and publish."""
    rows, goals = uvloop.run(_run())
    Report(
        name="served",
        title=f"Served: {MODEL} through log and socket, beside the bare core",
        columns=[
            "clients",
            "served tokens/s",
            "bare core tokens/s",
            "served / bare",
            "served TTFT p50 ms",
        ],
        rows=rows,
        goals=goals,
        notes=[
            f"Each client asks one question and gets {OUTPUT} tokens, greedy; the clock runs from "
            "the first question to the last token. The two take turns; medians of "
            f"{ROUNDS} rounds after one to warm up. The prefix cache is off and every question is "
            "another, so nothing is computed once only. Bare: the same prompts as frames to a "
            "core process of its own, without log or server. Clients, server and core share the "
            "machine's cores.",
        ],
    ).publish()


async def _run() -> tuple[list[list[Any]], list[Goal]]:
    rows, goals = [], []
    config = CoreConfig(model=str(resolve(MODEL)), prefix_cache=False)
    settings = {"EVERLOG_ENGINE__PREFIX_CACHE": "false", "EVERLOG_ENGINE__MODEL": MODEL}
    with tempfile.TemporaryDirectory() as folder, everlog(Path(folder), settings) as (port, _):
        core = await CoreProcess.launch(config)
        for count in CONCURRENCY:
            bare, served, first = await _compare(core, f"ws://127.0.0.1:{port}/ws", count)
            ratio = statistics.median(served) / statistics.median(bare)
            rows.append(
                [
                    count,
                    statistics.median(served),
                    statistics.median(bare),
                    ratio,
                    statistics.median(first) * 1e3,
                ]
            )
            goals.append(Goal(f"served / bare with {count} clients", ratio, 0.9))
        await core.stop()
    return rows, goals


async def _compare(
    core: CoreProcess, url: str, count: int
) -> tuple[list[float], list[float], list[float]]:
    """Take turns; returns tokens a second of both, and the served TTFTs in seconds."""
    bare, served, first = [], [], []
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(url)) for _ in range(count)]
        for turn in range(ROUNDS + 1):
            questions = [f"Tell me about the number {uuid7()[-6:]}." for _ in clients]
            one = count * OUTPUT / await _bare(core, questions)
            start = time.perf_counter()
            pairs = zip(clients, questions, strict=True)
            times = await asyncio.gather(*(_ask(who, what) for who, what in pairs))
            other = count * OUTPUT / (time.perf_counter() - start)
            if turn:
                bare.append(one)
                served.append(other)
                first += times
    return bare, served, first


async def _bare(core: CoreProcess, questions: list[str]) -> float:
    """Have the core answer all questions; returns the seconds it took."""
    open_requests = set()
    start = time.perf_counter()
    for question in questions:
        request = uuid7()
        open_requests.add(request)
        messages = [
            ChatMessage(role="system", content=ChatConfig().system_prompt),
            ChatMessage(role="user", content=question),
        ]
        core.send(Add(request=request, params=SamplingParams(**PARAMS), messages=messages))
    while open_requests:
        for frame in await core.receive():
            if isinstance(frame, Failed):
                raise RuntimeError(frame.message)
            if isinstance(frame, Step):
                open_requests -= {output.request for output in frame.outputs if output.reason}
    return time.perf_counter() - start


async def _ask(who: ClientConnection, question: str) -> float:
    """Ask over the socket and read to the end; returns the time to first token in seconds."""
    thread = uuid7()
    await who.send(msgspec.json.encode({"t": "open", "thread": thread}), text=True)
    post = {"t": "post", "id": uuid7(), "thread": thread, "content": question, "params": PARAMS}
    start = time.perf_counter()
    first = 0.0
    await who.send(msgspec.json.encode(post), text=True)
    while True:
        frame = await who.recv(decode=False)
        if not first and b'"tokens.generated"' in frame:
            first = time.perf_counter() - start
        if b'"request.finished"' in frame:
            break
        if b'"request.failed"' in frame:
            raise RuntimeError(frame.decode())
    await who.send(msgspec.json.encode({"t": "close", "thread": thread}), text=True)
    return first


if __name__ == "__main__":
    main()

"""Served: the engine over WebSocket and over HTTP, beside the bare core with the same requests."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from app.engine.frames import CoreConfig
from app.engine.hub import resolve
from app.engine.supervisor import CoreProcess
from app.events.ids import uuid7
from bench.ask import bare, over_http, over_socket
from bench.harness import client, everlog
from bench.report import Goal, Report

MODEL = "smollm2-135m-instruct"
CONCURRENCY = (1, 8, 64)
OUTPUT = 64
ROUNDS = 2
PARAMS: dict[str, Any] = {"temperature": 0.0, "max_tokens": OUTPUT, "ignore_eos": True, "seed": 0}


def main(arguments: list[str] | None = None) -> None:
    """Measure and publish."""
    rows, goals = uvloop.run(_run())
    Report(
        name="served",
        title=f"Served: {MODEL} through the log, beside the bare core",
        columns=[
            "clients",
            "bare core tokens/s",
            "WebSocket tokens/s",
            "WebSocket / bare",
            "its TTFT p50 ms",
            "HTTP tokens/s",
            "HTTP / bare",
            "its TTFT p50 ms",
        ],
        rows=rows,
        goals=goals,
        notes=[
            f"Each client asks one question and gets {OUTPUT} tokens, greedy; the clock runs from "
            "the first question to the last token. The three take turns; medians of "
            f"{ROUNDS} rounds after one to warm up. The prefix cache is off and every question is "
            "another, so nothing is computed once only. Bare: the same prompts as frames to a "
            "core process of its own, without log or server. WebSocket: a conversation of its own "
            "for each question. HTTP: /v1/chat/completions, streamed. Clients, server and core "
            "share the machine's cores.",
        ],
    ).publish()


async def _run() -> tuple[list[list[Any]], list[Goal]]:
    rows: list[list[Any]] = []
    goals = []
    config = CoreConfig(model=str(resolve(MODEL)), prefix_cache=False)
    settings = {"EVERLOG_ENGINE__PREFIX_CACHE": "false", "EVERLOG_ENGINE__MODEL": MODEL}
    with tempfile.TemporaryDirectory() as folder, everlog(Path(folder), settings) as (port, _):
        core = await CoreProcess.launch(config)
        for count in CONCURRENCY:
            turns = await _compare(core, port, count)
            speeds = [statistics.median(speed for speed, _ in way) for way in turns]
            row: list[Any] = [count, speeds[0]]
            for name, speed, way in zip(("WebSocket", "HTTP"), speeds[1:], turns[1:], strict=True):
                first = statistics.median(time for _, times in way for time in times)
                row += [speed, speed / speeds[0], first * 1e3]
                goals.append(Goal(f"{name} / bare with {count} clients", speed / speeds[0], 0.9))
            rows.append(row)
        await core.stop()
    return rows, goals


Turn = tuple[float, list[float]]
"""Tokens a second, and the times to first token in seconds."""


async def _compare(core: CoreProcess, port: int, count: int) -> list[list[Turn]]:
    """Take turns: the bare core, WebSocket, HTTP."""
    turns: list[list[Turn]] = [[], [], []]
    async with AsyncExitStack() as stack:
        url = f"ws://127.0.0.1:{port}/ws"
        clients = [await stack.enter_async_context(client(url)) for _ in range(count)]
        for turn in range(ROUNDS + 1):
            questions = [f"Tell me about the number {uuid7()[-6:]}." for _ in clients]
            results = [
                (count * OUTPUT / await bare(core, questions, PARAMS), []),
                await _together(
                    [over_socket(*pair, PARAMS) for pair in zip(clients, questions, strict=True)]
                ),
                await _together([over_http(port, MODEL, text, PARAMS) for text in questions]),
            ]
            if turn:
                for way, result in zip(turns, results, strict=True):
                    way.append(result)
    return turns


async def _together(asked: Sequence[Coroutine[Any, Any, float]]) -> Turn:
    start = time.perf_counter()
    times = await asyncio.gather(*asked)
    return len(times) * OUTPUT / (time.perf_counter() - start), times


if __name__ == "__main__":
    main()

"""Priority: time to first token of urgent requests under overload, beside order of arrival."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from app.events.ids import uuid7
from bench.ask import over_http
from bench.harness import everlog
from bench.report import Goal, Report, percentile

MODEL = "smollm2-135m-instruct"
BATCH = 4
OTHERS = 4 * BATCH
OUTPUT = 32
PARAMS: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
EVERY = 1.0


def main(arguments: list[str] | None = None) -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(prog="python -m bench.priority", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of overload, for each policy")
    options = parser.parse_args(arguments)
    rows, worst = [], {}
    for policy in ("fcfs", "priority"):
        urgent, others, tokens = uvloop.run(_run(policy, options.seconds))
        worst[policy] = percentile(urgent, 99)
        rows.append(
            [
                policy,
                len(urgent),
                percentile(urgent, 50) * 1e3,
                worst[policy] * 1e3,
                percentile(others, 50) * 1e3,
                percentile(others, 99) * 1e3,
                tokens,
            ]
        )
    Report(
        name="priority",
        title=f"Priority: urgent requests under overload, {MODEL}",
        columns=[
            "engine.policy",
            "urgent requests",
            "their TTFT p50 ms",
            "p99 ms",
            "others' TTFT p50 ms",
            "others' p99 ms",
            "tokens/s of all",
        ],
        rows=rows,
        goals=[Goal("p99 times as soon as by arrival", worst["fcfs"] / worst["priority"], 5.0)],
        notes=[
            f"A server of its own for each policy, with batches of {BATCH}. {OTHERS} clients ask "
            f"all the time, each {OUTPUT} tokens of priority 0, over /v1/chat/completions; every "
            f"{EVERY:g} s comes an urgent request of 8 tokens. For {options.seconds:g} s each, "
            "and until the urgent ones have ended; others count that ended by then. The "
            "prefix cache is off.",
        ],
    ).publish()


async def _run(policy: str, seconds: float) -> tuple[list[float], list[float], float]:
    """Times to first token in seconds: of the urgent, of the others; and tokens a second."""
    settings = {
        "EVERLOG_ENGINE__MODEL": MODEL,
        "EVERLOG_ENGINE__POLICY": policy,
        "EVERLOG_ENGINE__MAX_BATCH": str(BATCH),
        "EVERLOG_ENGINE__PREFIX_CACHE": "false",
    }
    urgent: list[float] = []
    others: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        everlog(Path(folder), settings) as (port, _),
    ):
        await _ask(port, 0, 8)
        begin = time.monotonic()
        end = begin + seconds

        async def other() -> None:
            while True:
                others.append(await _ask(port, 0, OUTPUT))

        async def one() -> None:
            urgent.append(await _ask(port, -1, 8))

        crowd = [asyncio.create_task(other()) for _ in range(OTHERS)]
        await asyncio.sleep(2 * EVERY)  # the queue is there
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < end:
                group.create_task(one())
                await asyncio.sleep(EVERY)
        took = time.monotonic() - begin
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
    return urgent, others, (len(urgent) * 8 + len(others) * OUTPUT) / took


async def _ask(port: int, priority: int, tokens: int) -> float:
    """Time to first token; for clients of the API, the less ``priority`` is the earlier."""
    question = f"What can be said about the number {uuid7()[-6:]}?"
    return await over_http(
        port, MODEL, question, {**PARAMS, "max_tokens": tokens, "priority": priority}
    )


if __name__ == "__main__":
    main()

"""Prefix cache: time to first token behind a long prompt that was computed before, or was not."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import uvloop

from app.engine.hub import resolve
from app.engine.tokenizer import Tokenizer
from app.engine.weights import open_checkpoint
from app.events.ids import uuid7
from bench.ask import over_http
from bench.harness import everlog
from bench.report import Goal, Report

MODEL = "smollm2-135m-instruct"
PROMPT = 1000
ROUNDS = 7
PARAMS = {"temperature": 0.0, "max_tokens": 4, "ignore_eos": True}


def main(arguments: list[str] | None = None) -> None:
    """Measure and publish."""
    cold, warm = uvloop.run(_run())
    ratio = statistics.median(cold) / statistics.median(warm)
    rows = [
        [name, statistics.median(times) * 1e3, min(times) * 1e3, max(times) * 1e3]
        for name, times in (("another prompt each time", cold), ("the same prompt", warm))
    ]
    Report(
        name="prefix",
        title=f"Prefix cache: time to first token behind {PROMPT} tokens, {MODEL}",
        columns=["", "TTFT p50 ms", "best ms", "worst ms"],
        rows=rows,
        goals=[Goal("times as soon behind a shared prompt", ratio, 5.0)],
        notes=[
            f"/v1/chat/completions, streamed, one request at a time; {ROUNDS} of each in turn. "
            f"The long text of {PROMPT} tokens is followed by a question that is another every "
            "time. Of the shared prompt all whole blocks come from the cache.",
        ],
    ).publish()


async def _run() -> tuple[list[float], list[float]]:
    """Times to first token in seconds: of new prompts, of one computed before."""
    cold, warm = [], []
    text = _text()
    with (
        tempfile.TemporaryDirectory() as folder,
        everlog(Path(folder), {"EVERLOG_ENGINE__MODEL": MODEL}) as (port, _),
    ):
        for turn in range(ROUNDS + 1):
            question = f"\nWhat of this is like the number {uuid7()[-6:]}?"
            fresh = await over_http(port, MODEL, uuid7() + text + question, PARAMS)
            known = await over_http(port, MODEL, text + question, PARAMS)
            if turn:  # the first computes the shared prompt
                cold.append(fresh)
                warm.append(known)
    return cold, warm


def _text() -> str:
    """A text of so many tokens."""
    with open_checkpoint(resolve(MODEL)) as checkpoint:
        tokenizer = Tokenizer.load(checkpoint)
    words = " ".join(f"Item {number} lies in box {number * 7 % 31}." for number in range(500))
    return tokenizer.decode(tokenizer.encode(words)[:PROMPT])


if __name__ == "__main__":
    main()

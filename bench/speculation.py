"""Tokens ahead: what drafts by prompt lookup bring, and what they cost where they bring nothing.

``python -m bench.speculation [--batch 1 8]``. Each task runs without and with drafts by turns, on
the same weights in the same process, a fixed number of output tokens. Tokens a second behind the
prompts are compared, as ratios of medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from typing import Any

from app.engine.runner import ModelRunner
from app.engine.sampling import SamplingParams
from app.engine.speculation import Speculator
from app.events.catalogue import ChatMessage
from bench.loop import Run, arguments_of, complete, load
from bench.report import Goal, Report

__all__ = ["main"]

_PROGRAM = '''\
class Cart:
    """What a customer wants to buy."""

    def __init__(self, owner):
        self.owner = owner
        self.items = []

    def add(self, name, price, count=1):
        if price < 0:
            raise ValueError("a price cannot be negative")
        self.items.append((name, price, count))

    def total(self):
        return sum(price * count for _, price, count in self.items)

    def describe(self):
        lines = []
        for name, price, count in self.items:
            lines.append(f"{count} x {name}: {price * count:.2f}")
        lines.append(f"total: {self.total():.2f}")
        return "\\n".join(lines)
'''
_COPY = f"Repeat this program word for word:\n\n{_PROGRAM}"
_STORY = "Tell me a story about a dog and a boat."
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "copy a program, greedy": (_COPY, {}),
    "copy a program, drawn": (_COPY, {"temperature": 0.7, "seed": 3}),
    "tell a story, drawn": (_STORY, {"temperature": 1.0, "seed": 3}),
}
_PAYS, _LOSES = "copy a program, greedy", "tell a story, drawn"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write ``bench/results/speculation``."""
    parser = arguments_of("speculation", __doc__, batch=[1, 8], output=96)
    parser.add_argument("--drafts", type=int, default=16, help="most tokens ahead")
    options = parser.parse_args(arguments)
    runner = load(options)
    rows, goals = [], []
    for batch in options.batch:
        for task in TASKS:
            row, ratio = _measure(runner, task, batch, options)
            rows.append(row)
            if task == _PAYS and batch == 1:
                goals.append(Goal(f"{task}: times as fast at batch 1", ratio, 1.5))
            elif task == _LOSES:
                goals.append(Goal(f"{task}: times as fast at batch {batch}", ratio, 0.95))
    info = runner.info
    Report(
        name="speculation",
        title=f"Tokens ahead by prompt lookup, {options.output} output tokens",
        columns=[
            *("task", "batch", "off tok/s", "on tok/s", "ratio", "tokens a step and sequence"),
            *("drafted", "right", "same tokens"),
        ],
        rows=rows,
        goals=goals,
        notes=[
            f"{info.name}, {info.dtype} on {info.device}, {info.threads} threads, at most "
            f"{options.drafts} tokens ahead; medians of {options.rounds} turns of each, in "
            "alternation; tokens behind the prompts only. What a step costs by its rows is learned "
            "in an unmeasured turn before.",
            "The small model copies some hundred tokens, then goes its own way; that is not in it.",
            "'same tokens' compares the two position by position. In float32 a row that is "
            "computed beside others may differ in its last bits, so a near tie may go the other "
            "way, after which two texts are different ones.",
        ],
    ).publish()


def _measure(
    runner: ModelRunner, task: str, batch: int, options: argparse.Namespace
) -> tuple[list[Any], float]:
    text, changes = TASKS[task]
    message = ChatMessage(role="user", content=text)
    prompt = runner.template.encode([message], tools=None, add_generation_prompt=True)
    params = SamplingParams(max_tokens=options.output, ignore_eos=True, **changes)
    run = partial(complete, runner, [prompt] * batch, params)
    speculator = Speculator(options.drafts)
    run(speculator=speculator)
    turns: tuple[list[Run], list[Run]] = ([], [])
    for _ in range(options.rounds):
        for found, how in zip(turns, (None, speculator), strict=True):
            found.append(run(speculator=how))
            speed = found[-1].tokens / found[-1].seconds
            print(f"{task}, batch {batch}, drafts {bool(how)}: {speed:.1f}", file=sys.stderr)
    off, on = (statistics.median([r.tokens / r.seconds for r in found]) for found in turns)
    last = turns[1][-1]
    pairs = zip(turns[0][-1].outputs, last.outputs, strict=True)
    same = [a == b for x, y in pairs for a, b in zip(x, y, strict=True)]
    row = [task, batch, off, on, on / off, last.tokens / last.works, *last.drafts]
    return [*row, f"{sum(same) / len(same):.0%}"], on / off


if __name__ == "__main__":
    main()

"""Engine: what `engine.deterministic` costs, on and off in the same run.

``python -m bench.deterministic [--batch 1 8 32 64]``. Greedy, end of sequence ignored. The two take
turns, so that whatever else the machine does hits both; the medians of the turns are shown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

from app.engine.frames import CoreConfig
from app.engine.hub import resolve
from app.engine.runner import ModelRunner
from app.engine.sampling import SamplingParams
from app.engine.sequence import Sequence, Work
from bench.report import Goal, Report

__all__ = ["main"]

_WARM_UP = 4  # output tokens of an unmeasured turn of each
_BUDGET = 512  # tokens in a step, as the engine is configured by default
_AIM = 0.5  # of the speed without


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write ``bench/results/engine-deterministic``."""
    parser = argparse.ArgumentParser(prog="python -m bench.deterministic", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--prompt", type=int, default=64, help="prompt tokens")
    parser.add_argument("--output", type=int, default=64, help="output tokens")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    options = parser.parse_args(arguments)
    path = str(resolve(options.model))
    runners = {
        on: ModelRunner.load(CoreConfig(model=path, dtype=options.dtype, deterministic=on))
        for on in (False, True)
    }
    rows, goals = [], []
    for batch in options.batch:
        row, alone = _measure(runners, batch, options)
        rows.append(row)
        goals.append(Goal(f"batch {batch}: part of the speed without", float(row[3]), _AIM))
        goals.append(Goal(f"batch {batch}: outputs as in a batch of one", alone, 1.0))
    _report(options, runners, rows, goals).publish()


def _measure(
    runners: dict[bool, ModelRunner], batch: int, options: argparse.Namespace
) -> tuple[list[Any], float]:
    """A row of the table, and the share of outputs that equal those of requests alone."""
    steps: dict[bool, list[float]] = {False: [], True: []}
    prompts: dict[bool, list[float]] = {False: [], True: []}
    outputs: dict[bool, list[list[int]]] = {}
    for runner in runners.values():
        _run(runner, range(batch), options.prompt, _WARM_UP)
    for _ in range(options.rounds):
        for on, runner in runners.items():
            outputs[on], prefill, decode = _run(
                runner, range(batch), options.prompt, options.output
            )
            prompts[on].append(batch * options.prompt / prefill)
            steps[on].append(batch * (options.output - 1) / decode)
            word = "on" if on else "off"
            print(f"batch {batch}, {word}: {prefill + decode:.2f} s", file=sys.stderr)
    same = {on: _as_alone(runner, outputs[on], options) for on, runner in runners.items()}
    speed, kept = statistics.median(steps[False]), statistics.median(steps[True])
    read, read_on = statistics.median(prompts[False]), statistics.median(prompts[True])
    shares = f"{same[False]:.0%} / {same[True]:.0%}"
    return [batch, speed, kept, kept / speed, read, read_on, read_on / read, shares], same[True]


def _as_alone(runner: ModelRunner, outputs: list[list[int]], options: argparse.Namespace) -> float:
    """Share of (some of) the outputs that come out the same in a batch of one."""
    some = range(0, len(outputs), max(1, len(outputs) // 4))
    alone = [_run(runner, [i], options.prompt, options.output)[0][0] for i in some]
    return sum(outputs[i] == one for i, one in zip(some, alone, strict=True)) / len(some)


def _run(
    runner: ModelRunner, names: Any, length: int, count: int
) -> tuple[list[list[int]], float, float]:
    """Outputs of prompts by their numbers, and seconds for the prompts and for the rest."""
    size, params = runner.info.block_size, SamplingParams(ignore_eos=True)
    need = -(-(length + count) // size)
    sequences = []
    for place, name in enumerate(names):
        prompt = [20 + (name * 7919 + i * (i + 104729)) % 40000 for i in range(length)]
        sequence = Sequence(str(name), prompt, params)
        sequence.blocks = list(range(place * need, (place + 1) * need))
        sequences.append(sequence)
    each = max(1, _BUDGET // length)
    began = time.perf_counter()
    for first in range(0, len(sequences), each):
        _step(runner, [Work(s, 0, length) for s in sequences[first : first + each]])
    middle = time.perf_counter()
    for _ in range(count - 1):
        _step(runner, [Work(s, len(s.tokens) - 1, 1) for s in sequences])
    ended = time.perf_counter()
    return [s.tokens[length:] for s in sequences], middle - began, ended - middle


def _step(runner: ModelRunner, works: list[Work]) -> None:
    for work, draw in zip(works, runner.execute(works), strict=True):
        assert draw is not None
        work.sequence.tokens += draw.tokens


def _report(
    options: argparse.Namespace,
    runners: dict[bool, ModelRunner],
    rows: list[list[Any]],
    goals: list[Goal],
) -> Report:
    info = runners[True].info
    start = ", ".join(
        f"{r.info.load_time:.1f} s {'on' if on else 'off'}" for on, r in runners.items()
    )
    return Report(
        name="engine-deterministic",
        title=f"engine.deterministic: {options.prompt} prompt and {options.output} output tokens",
        columns=[
            "batch",
            "output tok/s, off",
            "on",
            "on : off",
            "prompt tok/s, off",
            "on",
            "on : off",
            "outputs as alone, off / on",
        ],
        rows=rows,
        goals=goals,
        notes=[
            f"{info.name}, {info.dtype} on {info.device} ({info.cpu}), {info.threads} threads. "
            f"Medians of {options.rounds} turns, on and off in alternation. Loading took {start}.",
            "'outputs as alone': up to five of the batch, run again each in a batch of one; how "
            "many of them have every token the same.",
        ],
    )


if __name__ == "__main__":
    main()

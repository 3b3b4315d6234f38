"""Engine: our runner beside ``transformers`` generate, on the same weights in the same run.

``python -m bench.engine [--batch 1 8 32 64]``. Greedy, end of sequence ignored. The two systems
take turns, so that whatever else the machine does hits both; the medians of the turns are shown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from app.engine.frames import CoreConfig
from app.engine.hub import resolve
from app.engine.runner import ModelRunner
from app.engine.sampling import SamplingParams
from app.engine.sequence import Sequence, Work
from bench.reference import reference
from bench.report import Goal, Report

__all__ = ["main"]

_WARM_UP = 4  # output tokens of an unmeasured turn of each
_BUDGET = 512  # tokens in one of our steps, as the engine is configured by default


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write ``bench/results/engine-decode``."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--prompt", type=int, default=64, help="prompt tokens")
    parser.add_argument("--output", type=int, default=128, help="output tokens")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each system")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    options = parser.parse_args(arguments)
    path = resolve(options.model)
    runner = ModelRunner.load(CoreConfig(model=str(path), dtype=options.dtype))
    baseline = reference(path, getattr(torch, options.dtype))
    rows, goals = [], []
    for batch in options.batch:
        prompts = _prompts(batch, options.prompt, runner.tokenizer.vocab_size)
        ours, theirs, same = _take_turns(
            partial(_run_ours, runner, prompts),
            partial(_run_theirs, baseline, prompts),
            options.output,
            options.rounds,
        )
        count = batch * options.output
        speed, other = count / statistics.median(ours), count / statistics.median(theirs)
        best = min(theirs) / min(ours)
        rows.append([batch, speed, other, speed / other, best, count / min(ours), f"{same:.0%}"])
        goals.append(Goal(f"batch {batch}: times as fast as transformers", speed / other, 1.0))
    _report(options, runner, rows, goals, path).publish()


def _prompts(batch: int, length: int, vocab: int) -> list[list[int]]:
    random = torch.Generator().manual_seed(0)
    return torch.randint(20, vocab, (batch, length), generator=random).tolist()


def _take_turns(
    ours: Callable[[int], list[list[int]]],
    theirs: Callable[[int], list[list[int]]],
    output: int,
    rounds: int,
) -> tuple[list[float], list[float], float]:
    """Seconds of each turn, and the share of output tokens on which the two agree."""
    times: tuple[list[float], list[float]] = ([], [])
    outputs: list[list[list[int]]] = [[], []]
    for run in (ours, theirs):
        run(_WARM_UP)
    for _ in range(rounds):
        for index, run in enumerate((ours, theirs)):
            began = time.perf_counter()
            outputs[index] = run(output)
            times[index].append(time.perf_counter() - began)
            batch = len(outputs[index])
            name = ("everlog", "transformers")[index]
            print(f"batch {batch}, {name}: {times[index][-1]:.2f} s", file=sys.stderr)
    pairs = [a == b for x, y in zip(*outputs, strict=True) for a, b in zip(x, y, strict=True)]
    return times[0], times[1], sum(pairs) / len(pairs)


def _run_ours(runner: ModelRunner, prompts: list[list[int]], count: int) -> list[list[int]]:
    """All prompts at once: chunks of prompts to the token budget, then steps over all."""
    size = runner.info.block_size
    params = SamplingParams(ignore_eos=True)
    need = -(-(len(prompts[0]) + count) // size)
    sequences = []
    for index, prompt in enumerate(prompts):
        sequence = Sequence(str(index), prompt, params)
        sequence.blocks = list(range(index * need, (index + 1) * need))
        sequences.append(sequence)
    each = max(1, _BUDGET // len(prompts[0]))
    for first in range(0, len(sequences), each):
        _step(runner, [Work(s, 0, len(s.tokens)) for s in sequences[first : first + each]])
    for _ in range(count - 1):
        _step(runner, [Work(s, len(s.tokens) - 1, 1) for s in sequences])
    return [s.tokens[s.prompt_len :] for s in sequences]


def _step(runner: ModelRunner, works: list[Work]) -> None:
    for work, draw in zip(works, runner.execute(works), strict=True):
        assert draw is not None
        work.sequence.tokens += draw.tokens


@torch.inference_mode()
def _run_theirs(model: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    ids = torch.tensor(prompts)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=count,
        max_new_tokens=count,
        pad_token_id=2,
    )
    return out[:, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


def _report(
    options: argparse.Namespace,
    runner: ModelRunner,
    rows: list[list[Any]],
    goals: list[Goal],
    path: Path,
) -> Report:
    info = runner.info
    return Report(
        name="engine-decode",
        title=f"Engine: {options.prompt} prompt and {options.output} output tokens, greedy",
        columns=[
            "batch",
            "everlog tok/s",
            "transformers tok/s",
            "ratio of medians",
            "ratio of best",
            "everlog best tok/s",
            "same tokens",
        ],
        rows=rows,
        goals=goals,
        notes=[
            f"{path.name}, {info.dtype} on {info.device}, {info.threads} threads for both. Tokens "
            f"over the whole time, prefill included; medians of {options.rounds} turns, the two "
            "systems in alternation. Other work on the machine slows both: trust the ratios.",
            "'same tokens' compares greedy outputs position by position; random prompts in "
            "bfloat16 meet near ties, after which texts go separate ways.",
        ],
    )


if __name__ == "__main__":
    main()

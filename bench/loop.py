"""Requests through scheduler and runner in this process, as the engine's core drives them."""

from __future__ import annotations

import argparse
import time

import msgspec

from app.engine.blocks import BlockManager
from app.engine.frames import CoreConfig
from app.engine.hub import resolve
from app.engine.runner import ModelRunner
from app.engine.sampling import SamplingParams
from app.engine.scheduler import Scheduler
from app.engine.sequence import Sequence
from app.engine.speculation import Speculator

__all__ = ["Run", "arguments_of", "complete", "load"]


def arguments_of(
    name: str, about: str | None, *, batch: list[int], output: int
) -> argparse.ArgumentParser:
    """Arguments of a benchmark that runs the model in this process; the numbers are defaults."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=about)
    parser.add_argument("--batch", type=int, nargs="+", default=batch)
    parser.add_argument("--output", type=int, default=output, help="output tokens")
    parser.add_argument("--rounds", type=int, default=3, help="turns with and without")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: one a core")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    return parser


def load(options: argparse.Namespace) -> ModelRunner:
    """The model that these arguments name."""
    path = str(resolve(options.model))
    return ModelRunner.load(CoreConfig(model=path, dtype=options.dtype, threads=options.threads))


class Run(msgspec.Struct, kw_only=True):
    """What came of some requests.

    Attributes:
        outputs: Tokens of each.
        seconds: Of all steps behind the prompts, from the first step that computes only last tokens
            or what follows them.
        tokens: That these steps brought.
        works: How often one of the requests was computed in them.
        drafts: Tokens that were drafted, and how many of them were right.

    """

    outputs: list[list[int]]
    seconds: float = 0.0
    tokens: int = 0
    works: int = 0
    drafts: tuple[int, int] = (0, 0)


def complete(
    runner: ModelRunner,
    prompts: list[list[int]],
    params: SamplingParams,
    *,
    speculator: Speculator | None = None,
) -> Run:
    """Run requests to their ends, all in one batch."""
    scheduler = Scheduler(
        BlockManager(runner.info.num_blocks, runner.info.block_size, prefix_cache=False),
        context=runner.info.context,
        eos=runner.info.eos,
        propose=speculator.propose if speculator else None,
    )
    outputs: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        sequence = Sequence(str(index), prompt, params)
        runner.prepare(sequence)
        scheduler.add(sequence)
        outputs[sequence.request] = []
    run = Run(outputs=[])
    while scheduler.busy:
        began = time.perf_counter()
        works = scheduler.schedule(0.0)
        computing = time.perf_counter()
        draws = runner.execute(works)
        if speculator is not None:
            speculator.timed(works, time.perf_counter() - computing)
        begun = all(outputs[work.sequence.request] for work in works)
        for result in scheduler.commit(works, draws):
            outputs[result.sequence.request] += result.tokens
            proposed, right = result.drafts
            run.drafts = (run.drafts[0] + proposed, run.drafts[1] + right)
            run.tokens += len(result.tokens) * begun
            if result.reason is not None:
                runner.release(result.sequence.request)
        run.seconds += (time.perf_counter() - began) * begun
        run.works += len(works) * begun
    if speculator is not None:
        for request in outputs:
            speculator.release(request)
    run.outputs = list(outputs.values())
    return run

"""Forms of answers: tokens a second with a form and without, as many tokens, on the same weights.

``python -m bench.structured [--batch 1 8 64]``. One form leaves a choice at every token, so it
shows what a form costs. The other is a schema as people have them: what it leaves no choice about
(names of properties) is taken without asking the model, several tokens in a step, and that gain is
in its ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from app.engine.runner import ModelRunner
from app.engine.sampling import SamplingParams, Structured
from app.events.catalogue import ChatMessage
from bench.loop import Run, arguments_of, complete, load
from bench.report import Goal, Report

__all__ = ["main"]

_PROMPT = "Give me a list of ten people with name, age, city, and a sentence about each."
_PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"enum": ["Paris", "London", "Rome", "Berlin", "Madrid"]},
        "sentence": {"type": "string", "minLength": 20},
    },
    "required": ["name", "age", "city", "sentence"],
    "additionalProperties": False,
}
# both have no end before a turn's
_FORMS = {
    "choice at every token": Structured(regex=r"([a-z]{1,9}[ ,.]){900}"),
    "schema": Structured(json_schema={"type": "array", "items": _PERSON, "minItems": 100}),
}
_DRAWS: dict[str, dict[str, Any]] = {"greedy": {}, "drawn": {"temperature": 1.0, "seed": 3}}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write ``bench/results/structured``."""
    parser = arguments_of("structured", __doc__, batch=[1, 8, 64], output=64)
    options = parser.parse_args(arguments)
    runner = load(options)
    rows, goals = [], []
    for batch in options.batch:
        for how in _DRAWS:
            found = _take_turns(runner, batch, how, options)
            off = found["no form"]
            for name in _FORMS:
                ratio = _speed(found[name]) / _speed(off)
                each = found[name][-1].tokens / found[name][-1].works
                rows.append([name, how, batch, _speed(off), _speed(found[name]), ratio, each])
                goals.append(Goal(f"{name}, {how}, batch {batch}: as fast as without", ratio, 0.9))
    info = runner.info
    Report(
        name="structured",
        title=f"Forms of answers, {options.output} output tokens",
        columns=[
            *("form", "tokens are", "batch", "without tok/s", "with tok/s", "ratio"),
            "tokens a step and sequence",
        ],
        rows=rows,
        goals=goals,
        notes=[
            f"{info.name}, {info.dtype} on {info.device}, {info.threads} threads; tokens behind "
            f"the prompts only, medians of {options.rounds} turns, in alternation with those "
            "without a form, which have as many tokens. Compiling a form (once, then it is kept) "
            "is not in it.",
            "More than one token a step and sequence: the form left no choice there, and the gain "
            "is in the ratio. 'choice at every token' has none of that.",
        ],
    ).publish()


def _take_turns(
    runner: ModelRunner, batch: int, how: str, options: argparse.Namespace
) -> dict[str, list[Run]]:
    message = ChatMessage(role="user", content=_PROMPT)
    prompt = runner.template.encode([message], tools=None, add_generation_prompt=True)
    found: dict[str, list[Run]] = {"no form": [], **{name: [] for name in _FORMS}}
    for turn in range(options.rounds + 1):
        for name, runs in found.items():
            params = SamplingParams(
                max_tokens=options.output if turn else 4,  # the first is a warm-up
                ignore_eos=True,
                structured=_FORMS.get(name),
                **_DRAWS[how],
            )
            run = complete(runner, [prompt] * batch, params)
            assert all(len(tokens) == params.max_tokens for tokens in run.outputs)
            if turn:
                runs.append(run)
                speed = run.tokens / run.seconds
                print(f"{how}, batch {batch}, {name}: {speed:.1f} tok/s", file=sys.stderr)
    return found


def _speed(runs: list[Run]) -> float:
    return statistics.median([run.tokens / run.seconds for run in runs])


if __name__ == "__main__":
    main()

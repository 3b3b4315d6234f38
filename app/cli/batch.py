"""Command ``batch``: a file of requests through the engine, without a server."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from app.cli.console import counted, emit, styled
from app.cli.options import json_option, setting, with_config
from app.cli.root import everlog
from app.errors import EverlogError, InputError
from app.settings import DEFAULT, Loaded

if TYPE_CHECKING:
    from app.transport.openai.journal import Journal
    from app.transport.openai.offline import Input


@everlog.command()
@click.argument("input_file", metavar="INPUT", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="OUTPUT",
    help="File for the results.",
)
@setting("--model", "engine.model", metavar="NAME")
@setting("--max-batch", "engine.max_batch", metavar="NUMBER", help="Most sequences at once; 256.")
@click.option(
    "--ordered/--unordered",
    default=True,
    help="Whether results come in the order of the lines, or as they were ready.",
)
@click.option("--strict", is_flag=True, help="Run nothing if there is a line that cannot be read.")
@click.option("--overwrite", is_flag=True, help="Begin anew where there are results already.")
@json_option("one JSON object at the end: lines, done, failed, tokens, seconds")
@with_config
def batch(
    loaded: Loaded,
    input_file: Path,
    output: Path,
    ordered: bool,
    strict: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Run the requests of a file, in OpenAI's format for batches, without a server.

    INPUT has a JSON object on each line: custom_id, method, url (/v1/chat/completions,
    /v1/completions, /v1/responses or /v1/embeddings) and body. Results go to OUTPUT.part, and in
    the end to OUTPUT. Interrupted or killed, the same command goes on behind the results there
    are. The exit code is 1 if a line failed; its result says why.
    """
    from app.transport.openai.journal import Journal
    from app.transport.openai.offline import Input

    if output.exists() and output.samefile(input_file):
        raise InputError("is the input", field="--output")
    given = Input(input_file)
    if strict and given.faults:
        number, fault = next(iter(given.faults.items()))
        raise InputError(f"{input_file}:{number}: {fault.message}")
    began = time.monotonic()
    with contextlib.closing(Journal(output)) as journal:
        if overwrite:
            journal.discard()
        given.check(journal.done)
        before, tokens = len(journal.done), 0
        if before < len(given):
            tokens = _run(loaded, given, journal)
        journal.finish(given.order if ordered else None)
    seconds = time.monotonic() - began
    if as_json:
        emit(
            {
                "lines": len(given),
                "done": len(given) - before,
                "failed": journal.failed,
                "tokens": tokens,
                "seconds": round(seconds, 3),
            }
        )
    else:
        _say(output, len(given), len(given) - before, journal.failed, tokens, seconds)
    if journal.failed:
        raise SystemExit(1)


def _run(loaded: Loaded, given: Input, journal: Journal) -> int:
    """Load the model and run what has no result; returns the tokens of the answers."""
    from app.engine.child import Child, CoreDied
    from app.engine.frames import capacity, core_config
    from app.engine.hub import resolve
    from app.engine.llm import OFFLINE
    from app.engine.progress import bar
    from app.transport.openai.offline import Offline, model_of

    engine = loaded.config.engine
    larger = {
        name: value
        for name, value in OFFLINE.items()
        if loaded.origins[f"engine.{name}"] == DEFAULT
    }
    config = core_config(msgspec.structs.replace(engine, **larger), str(resolve(engine.model)))
    with contextlib.closing(Child(config)) as child:
        offline = Offline(
            given,
            journal,
            child,
            model=model_of(child, engine.model),
            path=Path(config.model),
            window=capacity(config.max_batch),
        )
        try:
            with bar("Batch", len(given), done=len(journal.done)) as advance:
                offline.run(advance)
        except CoreDied as error:
            raise EverlogError(
                f"{error.message}; {counted(len(journal.done), 'line')} of {len(given):,} are done",
                hint="Start it again: it goes on from there. A smaller --max-batch takes less "
                "memory.",
            ) from error
        return offline.tokens


def _say(output: Path, lines: int, done: int, failed: int, tokens: int, seconds: float) -> None:
    if not done:
        click.echo(f"All {counted(lines, 'line')} had results before: {output}")
        return
    mark = styled("✓ ", "good") if not failed else styled("! ", "bad")
    rate = f"{counted(tokens, 'token')} in {seconds:,.1f} s"
    wrong = f" ({failed:,} of all {lines:,} failed)" if failed else ""
    click.echo(f"{mark}{counted(done, 'line')}{wrong}, {rate}: {output}")

"""Command ``ask``: a chat in the terminal, over the protocol the browser speaks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from app.cli.console import emit, styled
from app.cli.options import json_option, with_config
from app.cli.root import everlog
from app.errors import EverlogError
from app.settings import Loaded

#: Fields of `SamplingParams`, without importing it: their types, and what they do. What takes more
#: than a word to say, or is not shown in a terminal, stands in ELSEWHERE.
SAMPLING: dict[str, tuple[type, str]] = {
    "temperature": (float, "0 is greedy; larger is more random."),
    "top_k": (int, "Draw from the so many likeliest tokens; 0 is off."),
    "top_p": (float, "Draw from the likeliest tokens that make up this probability."),
    "min_p": (float, "Drop tokens less likely than this part of the likeliest."),
    "repetition_penalty": (float, "Above 1 against tokens that were there."),
    "presence_penalty": (float, "Above 0 against tokens of the answer."),
    "frequency_penalty": (float, "Above 0 against tokens often in the answer."),
    "stop": (str, "Text that ends the answer; may be given several times."),
    "stop_token_ids": (int, "Token that ends the answer; may be given several times."),
    "max_tokens": (int, "Longest answer in tokens."),
    "min_tokens": (int, "No end before so many tokens."),
    "ignore_eos": (bool, "Go on after the model's own end token."),
    "seed": (int, "The same seed gives the same answer."),
}
SEVERAL = ("stop", "stop_token_ids")
ELSEWHERE = {"logit_bias", "logprobs", "prompt_logprobs", "structured", "processors"}


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each sampling parameter; left out, the server's default holds."""
    for name, (kind, about) in reversed(SAMPLING.items()):
        flag = "--" + name.replace("_", "-")
        if kind is bool:
            option = click.option(flag, is_flag=True, default=None, help=about)
        else:
            option = click.option(flag, type=kind, multiple=name in SEVERAL, help=about)
        command = option(command)
    return command


@everlog.command()
@click.argument("prompt", nargs=-1, required=True)
@click.option("--thread", metavar="ID", help="Go on with this conversation; else a new one.")
@click.option("--url", metavar="URL", help="Of the server; by default where `serve` listens.")
@click.option(
    "--key",
    envvar="EVERLOG_KEY",
    metavar="KEY",
    help="API key, where the server needs one; better in EVERLOG_KEY.",
)
@sampling_options
@json_option("one JSON object at the end: thread, request, text, finish_reason, usage")
@with_config
def ask(
    loaded: Loaded,
    prompt: tuple[str, ...],
    thread: str | None,
    url: str | None,
    key: str | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Ask a running server, and print the answer as it comes.

    PROMPT `-` is read from stdin. Ctrl-C stops the answer. The exit code is 1 if it failed.
    """
    import asyncio

    from app.cli.answer import answer

    text = sys.stdin.read() if prompt == ("-",) else " ".join(prompt)
    params = _params(sampling)
    target = url or _default_url(loaded)
    show = _silent if as_json else _show
    notes = sys.stdout.isatty()
    found = asyncio.run(answer(target, thread, text, params, show, notes=notes, key=key))
    if as_json:
        emit(found)
    elif not found.good:
        raise EverlogError(
            found.error or f"The answer ended early: {found.finish_reason}",
            hint=f"See: everlog timeline {found.thread}",
        )
    elif sys.stderr.isatty():
        click.echo(styled(f"thread {found.thread}", "dim"), err=True)
    if not found.good:
        raise SystemExit(1)


def _params(sampling: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that were given; the server's defaults hold for the others.

    Raises:
        InputError: one is out of range.

    """
    from app.engine.sampling import SamplingParams, validate

    given = {name: value for name, value in sampling.items() if value not in (None, ())}
    validate(SamplingParams(**given))
    return given


def _default_url(loaded: Loaded) -> str:
    server = loaded.config.server
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(server.host, server.host)
    return f"http://{host}:{server.port}"


def _silent(text: str, style: str) -> None:
    pass


def _show(text: str, style: str) -> None:
    """Print the answer, without the name of who speaks."""
    if style != "who":
        click.echo(styled(text, style), nl=False)
        sys.stdout.flush()

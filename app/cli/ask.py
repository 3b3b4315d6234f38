"""Command ``ask``: a chat in the terminal, over the protocol the browser speaks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from app.cli.console import emit, styled
from app.cli.options import json_option, with_settings
from app.cli.root import everlog
from app.errors import EverlogError
from app.settings import Loaded

#: Fields of `SamplingParams`, without importing it.
SAMPLING: dict[str, type] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "stop": str,
    "stop_token_ids": int,
    "max_tokens": int,
    "min_tokens": int,
    "ignore_eos": bool,
    "seed": int,
}
SEVERAL = ("stop", "stop_token_ids")


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each sampling parameter; left out, the server's default holds."""
    for name, kind in reversed(SAMPLING.items()):
        flag = "--" + name.replace("_", "-")
        if kind is bool:
            option = click.option(flag, is_flag=True, default=None)
        elif name in SEVERAL:
            option = click.option(flag, type=kind, multiple=True, help="May be given again.")
        else:
            option = click.option(flag, type=kind)
        command = option(command)
    return command


@everlog.command()
@click.argument("prompt", nargs=-1, required=True)
@click.option("--thread", metavar="ID", help="Go on with this conversation; else a new one.")
@click.option("--url", metavar="URL", help="Of the server; by default where `serve` listens.")
@sampling_options
@json_option("one JSON object at the end: thread, request, text, finish_reason, usage")
@with_settings
def ask(
    loaded: Loaded,
    prompt: tuple[str, ...],
    thread: str | None,
    url: str | None,
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
    found = asyncio.run(answer(target, thread, text, params, show))
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
    """Print the answer to stdout, and what the service did beside it to stderr, if one looks."""
    if not style:
        click.echo(text, nl=False)
        sys.stdout.flush()
    elif style != "who" and sys.stderr.isatty():
        click.echo(styled(text, style), nl=False, err=True)

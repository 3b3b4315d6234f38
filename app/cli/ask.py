"""Command ``ask``: a chat in the terminal, over the protocol the browser speaks."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click
import msgspec

from app.cli.console import emit, styled
from app.cli.options import json_option, with_settings
from app.cli.root import EXIT_INTERRUPTED, everlog
from app.errors import EverlogError, InputError
from app.events.catalogue import SamplingParams, Usage
from app.events.envelope import Event, thread_stream
from app.settings import Loaded

if TYPE_CHECKING:
    from app.projections.state import ThreadState
    from app.transport.client import Client
    from app.transport.protocol import Item

STOP_SECONDS = 5.0
PATIENCE = 60.0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What ``--json`` prints.

    ``finish_reason`` is ``stop`` or ``length`` of the last request, else how it or the run ended
    (``cancelled``, ``failed``, ``stopped``, ``interrupted``); without any request it is ``stop``.
    """

    thread: str
    request: str | None
    text: str
    finish_reason: str
    usage: Usage | None
    error: str | None = None

    @property
    def good(self) -> bool:
        """Whether it ended as it should."""
        return self.finish_reason in ("stop", "length")


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of `SamplingParams`."""
    for field in reversed(msgspec.structs.fields(SamplingParams)):
        flag = "--" + field.name.replace("_", "-")
        if field.type is bool:
            option = click.option(flag, is_flag=True, default=None)
        elif field.name in ("stop", "stop_token_ids"):
            kind = str if field.name == "stop" else int
            option = click.option(
                flag, type=kind, multiple=True, help="May be given several times."
            )
        else:
            option = click.option(flag, type=float if field.type is float else int)
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
    text = sys.stdin.read() if prompt == ("-",) else " ".join(prompt)
    params = _params(sampling)
    target = url or _default_url(loaded)
    show = _silent if as_json else _show
    answer = asyncio.run(_ask(target, thread, text, params, show))
    if as_json:
        emit(answer)
    elif not answer.good:
        raise EverlogError(
            answer.error or f"The answer ended early: {answer.finish_reason}",
            hint=f"See: everlog timeline {answer.thread}",
        )
    elif sys.stderr.isatty():
        click.echo(styled(f"thread {answer.thread}", "dim"), err=True)
    if not answer.good:
        raise SystemExit(1)


def _params(sampling: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that were given; the server's defaults hold for the others.

    Raises:
        InputError: one is out of range.

    """
    from app.engine.sampling import validate

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


async def _ask(
    url: str,
    given: str | None,
    text: str,
    params: dict[str, Any],
    show: Callable[[str, str], None],
) -> Answer:
    from app.events.ids import uuid7
    from app.transport.client import Client

    async with Client(url, patience=PATIENCE) as client:
        thread = await _resolve(url, given) if given else uuid7()
        message = uuid7()
        ack = await client.post(thread, text, message=message, params=params or None)
        watch = asyncio.ensure_future(_watch(client, thread, message, ack.version - 1, show))
        try:
            return await asyncio.shield(watch)
        except asyncio.CancelledError:  # Ctrl-C: closing a socket stops nothing, so say it
            async with asyncio.timeout(STOP_SECONDS):
                await client.stop(thread)
                await watch
            raise SystemExit(EXIT_INTERRUPTED) from None
        finally:
            watch.cancel()


async def _resolve(url: str, given: str) -> str:
    """Return the id of the one conversation of the server that begins with ``given``."""
    from app.events.ids import is_id

    if is_id(given):
        return given
    import urllib.request

    def fetch() -> bytes:
        with urllib.request.urlopen(f"{url}/api/threads?limit=200", timeout=10) as response:
            body: bytes = response.read()
            return body

    items = msgspec.json.decode(await asyncio.to_thread(fetch))["items"]
    found = [item["id"] for item in items if item["id"].startswith(given)]
    if len(found) != 1:
        raise InputError(
            f"{given!r} begins the ids of {len(found)} of the latest conversations",
            field="--thread",
            hint="List them with: everlog threads",
        )
    return str(found[0])


async def _watch(
    client: Client, thread: str, message: str, after: int, show: Callable[[str, str], None]
) -> Answer:
    """Follow the thread after a version, to the end of the run that answers ``message``."""
    from app.cli.replay import Screen, Script
    from app.projections.state import apply, empty
    from app.transport.protocol import Item, Reset

    state, script, screen = empty(thread), Script(), Screen(show)
    run: str | None = None
    async with aclosing(client.follow(thread, after=after)) as items:
        async for item in items:
            if isinstance(item, Reset):
                raise EverlogError(
                    "The server's log was replaced while it answered", hint="Ask again."
                )
            if not isinstance(item, Item):
                continue
            event = _event(thread, item)
            apply(state, event)
            if item.type == "run.started" and state.runs[-1].message == message:
                run = item.run
            if item.run == run:
                for beat in script.beats(event):
                    screen.show(beat)
            if run is not None and _ended(state, run):
                screen.end()
                return _answer(state, run)
    raise EverlogError("The server ended the conversation")


def _event(thread: str, item: Item) -> Event:
    return Event(
        seq=item.seq,
        stream=thread_stream(thread),
        version=item.last,
        type=item.type,
        schema=item.schema,
        time=item.time,
        actor=item.actor,
        request=item.request,
        run=item.run,
        cause=None,
        data=bytes(item.data),
    )


def _ended(state: ThreadState, run: str) -> bool:
    """Whether the run has ended, and its requests, which may outlive it."""
    from app.events.lifecycle import TERMINAL

    found = state.index.runs.get(run)
    return (
        found is not None
        and found.ended is not None
        and all(r.state in TERMINAL for r in state.requests if r.run == run)
    )


def _answer(state: ThreadState, run: str) -> Answer:
    ended = state.index.runs[run]
    messages = [m for m in state.messages if m.run == run and m.role == "assistant"]
    text = "\n\n".join(m.content for m in messages if m.status != "removed" and m.level != "error")
    requests = [r for r in state.requests if r.run == run]
    last = requests[-1] if requests else None
    reason = "stop"
    if ended.status not in ("completed", "interrupted"):
        reason = ended.status
    elif last is not None:
        reason = last.reason or last.state
    elif ended.status == "interrupted":
        reason = "interrupted"
    error = ended.error.message if ended.error else (last.message if last else ended.reason)
    return Answer(
        thread=state.id,
        request=last.id if last else None,
        text=text,
        finish_reason=reason,
        usage=last.usage if last else None,
        error=None if reason in ("stop", "length") else error,
    )

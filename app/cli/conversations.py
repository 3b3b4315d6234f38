"""Commands about conversations: threads, show, replay, timeline."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from app.cli.console import ago, clean, console, emit, styled
from app.cli.options import json_option, thread_argument, with_settings
from app.cli.root import everlog
from app.errors import EverlogError
from app.settings import Loaded

if TYPE_CHECKING:
    from app.events.envelope import Event
    from app.events.store import EventStore
    from app.projections.state import MessageState, ThreadState

IDLE = 2.0


# -------------------------------------------------------------------------------- threads


@everlog.command()
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many.")
@click.option("--search", metavar="TEXT", help="Only those with this text in title or messages.")
@json_option("one JSON document, whole ids")
@with_settings
def threads(loaded: Loaded, limit: int, search: str | None, as_json: bool) -> None:
    """List conversations, the latest first."""
    import asyncio

    rows, short = asyncio.run(_threads(loaded, limit, search))
    if as_json:
        emit({"items": rows})
        return
    if not rows:
        click.echo("No conversations yet." if search is None else "No conversation has this text.")
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("thread", style="cyan", no_wrap=True)
    table.add_column("updated", no_wrap=True)
    table.add_column("messages", justify="right")
    table.add_column("title", ratio=1, no_wrap=True, overflow="ellipsis")
    now = time.time_ns()
    for row in rows:
        title = clean(row.title or "untitled").replace("\n", " ")
        table.add_row(short[row.id], ago(now - row.updated), str(row.messages), title)
    console().print(table)


async def _threads(
    loaded: Loaded, limit: int, search: str | None
) -> tuple[list[Any], dict[str, str]]:
    from app.cli.access import reading, shorten, thread_ids, viewing

    async with reading(loaded) as store, viewing(loaded, store) as views:
        rows = await views.threads(owner=None, limit=limit, search=search)
        return rows, shorten(await thread_ids(store))


# ----------------------------------------------------------------------------------- show


@everlog.command()
@thread_argument
@click.option("--at", type=click.IntRange(0), metavar="SEQ", help="As of this event of the log.")
@json_option("the whole state as one JSON document")
@with_settings
def show(loaded: Loaded, thread: str, at: int | None, as_json: bool) -> None:
    """Print the state of a conversation, now or at any point of the log.

    THREAD is an id or a unique beginning of one.
    """
    import asyncio

    state = asyncio.run(_state(loaded, thread, at))
    if as_json:
        emit(state)
        return
    title = clean(state.title or "untitled").replace("\n", " ")
    click.echo(styled(f"{title}  ", "who") + styled(f"{state.id} at seq {state.seq}", "dim"))
    for message in state.messages:
        _print_message(message)


def _print_message(message: MessageState) -> None:
    from app.cli.replay import speaker

    who = speaker(message.role, message.author)
    status = "" if message.status == "done" else f" ({message.status})"
    edited = " (edited)" if message.edited else ""
    click.echo(f"\n{styled(clean(who), 'who')}{styled(status + edited, 'dim')}")
    click.echo(clean(message.content))


async def _state(
    loaded: Loaded, given: str, at: int | None, *, requests: bool = False
) -> ThreadState:
    from app.cli.access import find_request, find_thread, reading
    from app.events.envelope import request_stream
    from app.projections.state import load

    async with reading(loaded) as store:
        request = await find_request(store, given) if requests else None
        stream = request_stream(request) if request else None
        sought = "request or conversation" if requests else "conversation"
        thread = request or await find_thread(store, given, sought=sought)
        state = await load(store, thread, at=at, stream=stream)
        if state is None:
            raise EverlogError(
                f"Conversation {thread} had not begun at seq {at}",
                hint=f"See: everlog events --thread {thread}",
            )
        return state


# ------------------------------------------------------------------------------- timeline


@everlog.command()
@thread_argument
@click.option("--at", type=click.IntRange(0), metavar="SEQ", help="As of this event of the log.")
@json_option("the tree of spans as one JSON document; times in ns since the epoch")
@with_settings
def timeline(loaded: Loaded, thread: str, at: int | None, as_json: bool) -> None:
    """Print runs, steps and requests as a tree with bars.

    Each run has a time axis of its own. THREAD is an id or a unique beginning of one, or the id
    of a request to the API (chatcmpl-..., cmpl-..., resp_...).
    """
    import asyncio

    from app.cli.timeline import render, spans

    state = asyncio.run(_state(loaded, thread, at, requests=True))
    if as_json:
        emit({"thread": state.id, "seq": state.seq, "spans": spans(state)})
        return
    for line in render(state, width=console().width):
        click.echo("".join(styled(text, style) for text, style in line).rstrip())


# --------------------------------------------------------------------------------- replay


@everlog.command()
@thread_argument
@click.option(
    "--speed",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="How many times as fast; 0 does not wait at all.",
)
@click.option("--until", type=click.IntRange(0), metavar="SEQ", help="Stop after this event.")
@click.option(
    "--idle",
    type=click.FloatRange(0),
    default=IDLE,
    show_default=True,
    metavar="SECONDS",
    help="Longest wait while nothing ran.",
)
@json_option("all moments as one JSON document, without waiting; times in ns since the epoch")
@with_settings
def replay(
    loaded: Loaded, thread: str, speed: float, until: int | None, idle: float, as_json: bool
) -> None:
    """Show a conversation as it happened, in its true rhythm.

    Tokens appear when they were generated. THREAD is an id or a unique beginning of one.
    """
    import asyncio

    from app.cli.replay import Screen, Script, play

    events = asyncio.run(_events(loaded, thread, until))
    script = Script()
    beats = (beat for event in events for beat in script.beats(event))
    if as_json:
        emit({"items": list(beats)})
        return

    def write(text: str, style: str) -> None:
        click.echo(styled(text, style), nl=False)
        sys.stdout.flush()

    play(beats, Screen(write), speed=speed, idle=idle)


async def _events(loaded: Loaded, given: str, until: int | None) -> list[Event]:
    from app.cli.access import find_thread, reading
    from app.events.envelope import thread_stream

    async with reading(loaded) as store:
        stream = thread_stream(await find_thread(store, given))
        return [event async for event in _up_to(store, stream, until)]


async def _up_to(store: EventStore, stream: str, until: int | None) -> Any:
    async for event in store.read(stream=stream):
        if until is not None and event.seq > until:
            return
        yield event

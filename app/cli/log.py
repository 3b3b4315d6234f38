"""Commands about the log itself: events, head, verify."""

from __future__ import annotations

import fnmatch
import itertools
import re
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli.console import clean, console, counted, emit, emit_line, progress, styled
from app.cli.options import json_option, with_settings
from app.cli.root import everlog
from app.errors import EverlogError, InputError
from app.settings import Loaded

if TYPE_CHECKING:
    from app.events.envelope import Event
    from app.events.seal import Head
    from app.events.store import EventStore
    from app.events.verify import Problem, Report

TAIL = 10


@everlog.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with new events until Ctrl-C.")
@click.option("--thread", metavar="THREAD", help="Only of this conversation.")
@click.option(
    "--type", "types", multiple=True, metavar="TYPE", help="Only these; `request.*` works."
)
@click.option(
    "--after",
    type=click.IntRange(0),
    metavar="SEQ",
    help=f"Only events after this one; with --follow the last {TAIL} are shown by default.",
)
@click.option("--limit", type=click.IntRange(1), help="Stop after so many.")
@json_option("JSON Lines, one event each")
@with_settings
def events(
    loaded: Loaded,
    follow: bool,
    thread: str | None,
    types: tuple[str, ...],
    after: int | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Print the events of the log, oldest first."""
    import asyncio

    names = _matching(types)
    show = _show_json if as_json else _line_printer()

    async def run() -> None:
        from app.cli.access import find_thread, reading
        from app.events.envelope import thread_stream

        async with reading(loaded) as store:
            stream = thread_stream(await find_thread(store, thread)) if thread else None
            start = after
            if start is None:
                start = max(0, await store.head() - TAIL) if follow else 0
            left = limit
            async with aclosing(_select(store, stream, names, start, follow)) as found:
                async for event in found:
                    show(event)
                    left = None if left is None else left - 1
                    if left == 0:
                        return

    asyncio.run(run())


async def _select(
    store: EventStore, stream: str | None, types: list[str] | None, after: int, follow: bool
) -> AsyncGenerator[Event, None]:
    """Yield events with ``seq > after``; positions in a stream are its versions."""
    position = after
    if stream is not None:
        position = 0
        async for event in store.read(stream=stream):
            if event.seq > after:
                break
            position = event.version
    if not follow:
        async for event in store.read(after=position, stream=stream, types=types):
            yield event
        return
    async for batch in store.follow(after=position, stream=stream, types=types):
        for event in batch:
            yield event
        sys.stdout.flush()


def _matching(patterns: tuple[str, ...]) -> list[str] | None:
    """Return the names in the catalogue that match, or None for all.

    Raises:
        InputError: if a pattern matches none.

    """
    if not patterns:
        return None
    import difflib

    from app.events.catalogue import CATALOGUE

    found: list[str] = []
    for pattern in patterns:
        names = fnmatch.filter(CATALOGUE, pattern)
        if not names:
            close = difflib.get_close_matches(pattern, CATALOGUE, n=1, cutoff=0.5)
            raise InputError(
                f"There is no event type {pattern!r}",
                field="--type",
                hint=f"Did you mean {close[0]}?" if close else "docs/events.md lists them.",
            )
        found += names
    return found


def _show_json(event: Event) -> None:
    import msgspec

    emit_line(msgspec.structs.asdict(event) | {"data": msgspec.Raw(event.data)})


def _line_printer() -> Any:
    """Return a function that prints one event on one line, cut to the width of a terminal."""
    width = console().width if sys.stdout.isatty() else None
    short = re.compile("(?<=/)([0-9a-f]{8}-[0-9a-f]{4})[0-9a-f-]{23}")  # enough for a reader

    def show(event: Event) -> None:
        seconds, rest = divmod(event.time, 10**9)
        clock = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{rest // 10**6:03}"
        head = f"{event.seq:>7}  {clock}  "
        kind = f"{event.type:<20} "
        stream = event.stream if width is None else short.sub(r"\1", event.stream)
        tail = clean(f"{stream}@{event.version}  {event.data.decode(errors='replace')}")
        if width is not None:
            room = width - len(head) - len(kind)
            tail = tail if len(tail) <= room else tail[: max(0, room - 1)] + "…"
        click.echo(styled(head, "dim") + styled(kind, "run") + tail)

    return show


# --------------------------------------------------------------------------- head, verify


@everlog.command()
@json_option()
@with_settings
def head(loaded: Loaded, as_json: bool) -> None:
    """Print the root over the whole log, to be kept somewhere else.

    `everlog verify --head FILE` later proves that nothing up to it was changed or cut off.
    """
    import asyncio

    async def run() -> Head:
        from app.cli.access import reading
        from app.events.seal import head

        async with reading(loaded) as store:
            return await head(store)

    found = asyncio.run(run())
    if as_json:
        emit(found)
        return
    click.echo(f"{styled('root', 'who')}         {found.root}")
    click.echo(f"{styled('seq', 'who')}          {found.seq}")
    click.echo(f"{styled('incarnation', 'who')}  {found.incarnation}")


@everlog.command()
@click.option(
    "--head",
    "saved",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What `everlog head --json` printed once; else a log that lost its end looks whole.",
)
@json_option()
@with_settings
def verify(loaded: Loaded, saved: Path | None, as_json: bool) -> None:
    """Check every event against its hash and its seal. The exit code is 1 if any is wrong."""
    import asyncio

    expected = _saved_head(saved) if saved else None

    async def run() -> Report:
        from app.cli.access import reading
        from app.events.verify import verify

        async with reading(loaded) as store:
            with progress("Verifying", "events") as advance:
                return await verify(store, advance, expected=expected)

    report = asyncio.run(run())
    if as_json:
        emit({"ok": report.ok, "report": report})
    else:
        _print_report(report)
    if not report.ok:
        raise SystemExit(1)


def _saved_head(path: Path) -> Head:
    import msgspec

    from app.events.seal import Head

    try:
        return msgspec.json.decode(path.read_bytes(), type=Head)
    except msgspec.DecodeError as error:
        raise InputError(
            f"{path} is not a saved head: {error}",
            field="--head",
            hint="Make one with: everlog head --json > FILE",
        ) from None


def _grouped(problems: list[Problem]) -> Iterator[str]:
    """Yield what is wrong; events that cannot be read for the same reason make one line."""

    def reason(problem: Problem) -> tuple[str, str]:
        if problem.kind != "unreadable":
            return problem.kind, problem.message
        return problem.kind, problem.message.removeprefix(f"event {problem.seq} ")

    for (_, why), same in itertools.groupby(problems, key=reason):
        group = list(same)
        if len(group) == 1:
            yield group[0].message
        else:
            yield f"{len(group):,} events from {group[0].seq} to {group[-1].seq} {why}"


def _print_report(report: Report) -> None:
    from app.events.verify import OTHER_LOG

    for message in _grouped(report.problems):
        click.echo(styled(f"✗ {clean(message)}", "bad"))
    if report.found > len(report.problems):
        click.echo(styled(f"✗ and {report.found - len(report.problems)} more", "bad"))
    if not report.ok and all(p.kind == OTHER_LOG for p in report.problems):
        raise EverlogError(
            "The events are as written, but this is not the log of that head",
            hint="A log that was restored has a new incarnation: keep a new head of it,"
            " and check the backup itself with the old one.",
        )
    if not report.ok:
        seqs = sorted({p.seq for p in report.problems if p.seq is not None})
        at = f" at seq {', '.join(map(str, seqs[:10]))}" if seqs else ""
        raise EverlogError(
            f"The log is damaged{at}",
            hint="Keep what is there as it is, and restore a backup beside it: of the database,"
            " or of the objects where one of these is named.",
        )
    seals = counted(report.seals, "seal")
    sealed = f"{seals} up to seq {report.sealed}" if report.seals else "no seal yet"
    events = counted(report.events, "event")
    redacted = f", {report.redacted:,} of them redacted" if report.redacted else ""
    click.echo(styled(f"✓ {events} as written{redacted}; {sealed}", "good"))
    if report.head is not None:
        click.echo(f"  root {report.head.root}")

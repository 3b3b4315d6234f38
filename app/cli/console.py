"""What commands print: JSON, tables, progress and errors, on terminals, in pipes and in files."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

import click
import msgspec

from app.errors import EverlogError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "ago",
    "clean",
    "console",
    "counted",
    "duration",
    "emit",
    "emit_line",
    "phases",
    "progress",
    "report",
    "say_warnings",
    "size",
    "styled",
]

Advance = Callable[[int, int], None]

#: C0 and C1 control characters and DEL, but not newline and tab: stored text must not drive the
#: reader's terminal.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Return ``text`` with control characters made visible (U+2400 block), safe to print."""
    return _CONTROL.sub(lambda m: chr(0x2400 + ord(m[0])) if m[0] < " " else "\ufffd", text)


def in_colour(stream: IO[str]) -> bool:
    """Whether to colour: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return not os.environ.get("NO_COLOR") and stream.isatty()


STYLES: dict[str, dict[str, Any]] = {
    "dim": {"dim": True},
    "good": {"fg": "green"},
    "bad": {"fg": "red"},
    "who": {"bold": True},
    "run": {"fg": "cyan"},
    "step": {"fg": "blue"},
    "queue": {"fg": "yellow"},
    "prefill": {"fg": "magenta"},
    "decode": {"fg": "green"},
}


def styled(text: str, style: str) -> str:
    """Return ``text`` in one of `STYLES` if stdout is in colour, else as it is."""
    if not text or style not in STYLES or not in_colour(sys.stdout):
        return text
    return click.style(text, **STYLES[style])


def console(*, stderr: bool = False) -> Console:
    """Return a rich console that keeps to the real width and marks nothing up by itself."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 100
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def emit(value: Any) -> None:
    """Print one JSON document."""
    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2))


def emit_line(value: Any) -> None:
    """Print one line of JSON Lines."""
    click.echo(msgspec.json.encode(value, enc_hook=str))


def report(error: EverlogError) -> None:
    """Print an error for a person to stderr: what failed, then what to do next."""
    colour = in_colour(sys.stderr)
    label = click.style("error:", fg="red", bold=True) if colour else "error:"
    click.echo(f"{label} {clean(str(error))}", err=True, color=colour)
    if error.hint:
        label = click.style("hint:", fg="cyan") if colour else "hint:"
        click.echo(f"{label} {clean(error.hint)}", err=True, color=colour)


class _Warnings(logging.Formatter):
    """A line for a person, as `report` makes them."""

    def format(self, record: logging.LogRecord) -> str:
        return clean(f"{record.levelname.lower()}: {super().format(record)}")


def say_warnings() -> None:
    """Print what is logged as a warning or worse to stderr; `serve` and `worker` log otherwise."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Warnings())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


@contextlib.contextmanager
def progress(title: str, unit: str) -> Iterator[Advance]:
    """Show progress on stderr while the body runs: a bar with rate on a terminal, else nothing.

    The bar goes when the work is done: what the command prints then says what was done.

    Yields a function of (done, total); a total of 0 is unknown.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress as rich_progress

    class Rate(rich_progress.ProgressColumn):
        def render(self, task: rich_progress.Task) -> str:
            speed = task.finished_speed or task.speed or 0.0
            return f"{size(speed)}/s" if unit == "bytes" else f"{speed:,.0f} {unit}/s"

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        Rate(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


@contextlib.contextmanager
def phases(*titles: tuple[str, str]) -> Iterator[list[Advance]]:
    """Show `progress` of work in phases, each given by its title and unit, one bar at a time.

    Yields a function of (done, total) for each phase; its bar begins with its first call.
    """
    with contextlib.ExitStack() as bars:
        begun: dict[str, Advance] = {}

        def phase(title: str, unit: str) -> Advance:
            def advance(done: int, total: int) -> None:
                if title not in begun:
                    bars.close()  # the one before is complete
                    begun[title] = bars.enter_context(progress(title, unit))
                begun[title](done, total)

            return advance

        yield [phase(title, unit) for title, unit in titles]


# ----------------------------------------------------------------------------- quantities


def duration(ns: float) -> str:
    """Return a span of time in nanoseconds as a short text: ``3.2 ms``, ``1.25 s``, ``4m 05s``."""
    ms = ns / 1e6
    if ms < 9.95:
        return f"{ms:.1f} ms"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    seconds = ms / 1e3
    if seconds < 59.995:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours < 48 else f"{hours // 24} days"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: ``1 run``, ``2 runs``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def ago(ns: float) -> str:
    """Return how long ago something was, coarsely: ``3 min ago``."""
    seconds = max(0, int(ns / 1e9))
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length or (unit != "days" and seconds >= length):
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def size(count: float) -> str:
    """Return bytes as a short text: ``98.3 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"

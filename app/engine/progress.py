"""A progress bar for many requests: how many are done, and tokens a second."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

__all__ = ["Advance", "bar"]

Advance = Callable[[int, int], None]
"""Called with how many requests are done, and how many tokens were computed for them all."""


@contextlib.contextmanager
def bar(title: str, total: int, *, done: int = 0) -> Iterator[Advance]:
    """Show a bar on stderr while the body runs, if that is a terminal.

    Args:
        title: What is done.
        total: How many requests there are.
        done: How many of them were done before.

    """
    if not sys.stderr.isatty():
        yield lambda requests, tokens: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]:,.0f} tokens/s"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with progress.Progress(*columns, console=console) as shown:
        task = shown.add_task(title, total=total, completed=done, rate=0.0)

        def advance(requests: int, tokens: int) -> None:
            elapsed = shown.tasks[0].elapsed or 0.0
            shown.update(task, completed=requests, rate=tokens / elapsed if elapsed else 0.0)

        yield advance

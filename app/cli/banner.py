"""What `serve` and `worker` say when they are ready."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from app import __version__
from app.cli.console import clean, console

if TYPE_CHECKING:
    from app.engine.frames import Ready

__all__ = ["model_facts", "show"]


def model_facts(model: Ready) -> dict[str, str]:
    """Return what a person wants to know of a loaded model."""
    where = f"{model.threads} CPU threads" if model.device == "cpu" else model.device
    return {
        "model": f"{model.model} ({model.parameters / 1e6:,.0f} M parameters, {model.dtype})",
        "context": f"{model.context:,} tokens",
        "device": where,
    }


def show(facts: dict[str, str], what: str, seconds: float) -> None:
    """Say that ``what`` is ready: framed on a terminal, else a log record with the facts."""
    if not sys.stdout.isatty():
        where = next(iter(facts.values()))
        log = logging.getLogger("everlog")
        log.info("ready in %.1f s at %s", seconds, where, extra={"facts": facts})
        return
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        style = "bold cyan" if name == "url" else ""
        table.add_row(Text(name, style="dim"), Text(clean(value), style=style))
    title = Text(f"{what} {__version__} is ready after {seconds:.1f} s", style="bold")
    console().print(Panel(table, title=title, subtitle="Ctrl-C to stop", expand=False))

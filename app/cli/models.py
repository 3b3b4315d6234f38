"""Command group ``models``: what models there are, and which are here."""

from __future__ import annotations

import click

from app.cli.console import console, emit, progress, size, styled
from app.cli.options import json_option, with_config
from app.cli.root import everlog
from app.settings import Loaded


@everlog.group()
def models() -> None:
    """Fetch and list models."""


@models.command("list")
@json_option()
@with_config
def list_models(loaded: Loaded, as_json: bool) -> None:
    """List the models that have a name, and the one of the settings."""
    from app.engine import hub

    rows = hub.list_models()
    if as_json:
        emit({"items": rows, "used": loaded.config.engine.model})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "size", "here", "about"):
        table.add_column(name, justify="right" if name == "size" else "left")
    for row in rows:
        here = "✓" if row.path else "no"
        table.add_row(row.name, size(row.size), here, row.about)
    console().print(table)
    used = loaded.config.engine.model
    click.echo(styled(f"In use: {used}. A path of a GGUF file or model folder works too.", "dim"))


@models.command()
@click.argument("name", required=False)
@click.option("--force", is_flag=True, help="Fetch it again even if it is here.")
@json_option()
@with_config
def pull(loaded: Loaded, name: str | None, force: bool, as_json: bool) -> None:
    """Fetch a model into the cache; by default the one of the settings."""
    from app.engine import hub

    name = name or loaded.config.engine.model
    with progress(f"Fetching {name}", "bytes") as advance:
        path = hub.resolve(name, progress=advance, force=force)
    if as_json:
        emit({"name": name, "path": str(path)})
    else:
        click.echo(styled("✓ ", "good") + f"{name} is at {path}")

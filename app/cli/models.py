"""Command group ``models``: what models there are, and which are here."""

from __future__ import annotations

import click

from app.cli.console import emit, progress, styled
from app.cli.options import json_option, with_settings
from app.cli.root import everlog
from app.settings import Loaded


@everlog.group()
def models() -> None:
    """Fetch and list models."""


@models.command()
@click.argument("name", required=False)
@json_option()
@with_settings
def pull(loaded: Loaded, name: str | None, as_json: bool) -> None:
    """Fetch a model into the cache; by default the one of the settings."""
    from app.engine import hub

    name = name or loaded.config.engine.model
    with progress(f"Fetching {name}", "bytes") as advance:
        path = hub.resolve(name, progress=advance)
    if as_json:
        emit({"name": name, "path": str(path)})
    else:
        click.echo(styled("✓ ", "good") + f"{name} is at {path}")

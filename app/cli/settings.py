"""Command group ``config``: what the settings are, and where each came from."""

from __future__ import annotations

import click

from app.cli.console import emit, styled
from app.cli.options import json_option, with_settings
from app.cli.root import everlog
from app.settings import DEFAULT, FILE, Loaded, keys, reference


@everlog.group()
def config() -> None:
    """Show the settings."""


@config.command("show")
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@json_option()
@with_settings
def show(loaded: Loaded, origin: bool, as_json: bool) -> None:
    """Print every setting in use."""
    values = {path: _value(loaded, path) for path in keys()}
    if as_json:
        shown = {
            path: {"value": value, "origin": loaded.origins[path]} if origin else value
            for path, value in values.items()
        }
        emit(shown)
        return
    import msgspec

    click.echo(styled(f"# settings file: {loaded.file or f'none ({FILE})'}", "dim"))
    texts = {path: msgspec.json.encode(value).decode() for path, value in values.items()}
    width = max(map(len, texts.values()))
    for path, text in texts.items():
        line = f"{path:<27} {text:<{width}}  " if origin else f"{path:<27} {text}"
        source = loaded.origins[path]
        note = styled(source, "dim" if source == DEFAULT else "run") if origin else ""
        click.echo((line + note).rstrip())


@config.command("reference")
def show_reference() -> None:
    """Print docs/configuration.md."""
    click.echo(reference(), nl=False)


def _value(loaded: Loaded, path: str) -> object:
    section, _, name = path.partition(".")
    return getattr(getattr(loaded.config, section), name)

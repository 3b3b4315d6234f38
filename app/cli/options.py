"""Options that many commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from app.settings import FILE, Flag, Loaded, keys, load

__all__ = ["json_option", "setting", "thread_argument", "with_config", "with_settings"]

Command = TypeVar("Command", bound=Callable[..., Any])

_META = "everlog.flags"


def setting(flag: str, path: str, **attributes: Any) -> Callable[[Command], Command]:
    """Add an option that sets ``path``; `with_settings` puts it into the loaded settings."""

    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is not None:
            flags = ctx.meta.setdefault(_META, {})
            flags[path] = Flag(flag, value)

    attributes.setdefault("help", keys()[path].doc)
    return click.option(flag, expose_value=False, callback=keep, default=None, **attributes)


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--config`` and ``--database``, and pass the loaded settings as ``loaded``."""
    return setting("--database", "database.url", metavar="URL")(with_config(command))


def with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--config``, and pass the loaded settings as ``loaded``."""

    @click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"Settings file instead of {FILE} in the working directory.",
    )
    @click.pass_context
    @functools.wraps(command)
    def wrapped(ctx: click.Context, /, config_file: Path | None, **arguments: Any) -> Any:
        loaded: Loaded = load(ctx.meta.get(_META, {}), file=config_file)
        return command(loaded=loaded, **arguments)

    return wrapped


def json_option(what: str = "one JSON document") -> Callable[[Command], Command]:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what}.")


def thread_argument(command: Command) -> Command:
    """Add the argument THREAD."""
    return click.argument("thread")(command)

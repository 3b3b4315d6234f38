"""`everlog copy`: the same log in another database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from app.cli.console import counted, duration, emit, phases, styled
from app.cli.options import json_option, with_config
from app.cli.root import everlog
from app.errors import InputError, StartupError
from app.settings import Loaded

if TYPE_CHECKING:
    from app.config import Config
    from app.events.copy import Copied


@everlog.command("copy")
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@json_option()
@with_config
def copy_log(loaded: Loaded, source: str, target: str, as_json: bool) -> None:
    """Copy the log SOURCE into the database TARGET, and verify it there.

    Both are database URLs: sqlite:///file.db, a path, or postgresql://host/database. The copy has
    the same positions, hashes, seals and incarnation: clients go on in it. After an interruption
    the same command goes on. SOURCE may be in use, TARGET not.
    """
    import asyncio

    done = asyncio.run(_copy(loaded, source, target))
    if as_json:
        emit({"events": done.events, "kept": done.kept, "head": done.head})
        return
    rate = done.events / max(done.seconds, 1e-9)
    kept = f" after {done.kept:,} that were there" if done.kept else ""
    took = f" in {duration(done.seconds * 1e9)} ({rate:,.0f} events/s)" if done.events else ""
    click.echo(
        styled("✓ ", "good")
        + f"{counted(done.events, 'event')} copied{kept}{took}; both logs are equal"
    )
    click.echo(f"  root {done.head.root}")


async def _copy(loaded: Loaded, source: str, target: str) -> Copied:
    from app.events.backup import is_backup
    from app.events.copy import copy
    from app.events.objects import open_objects
    from app.events.open import open_store
    from app.events.url import database_path

    _refuse_the_same(source, target)
    synchronous = loaded.config.database.synchronous
    async with (
        open_objects(_of(loaded.config, source)) as objects,
        open_store(source, read_only=True, objects=objects) as old,
        open_store(target, synchronous=synchronous) as new,
    ):
        with phases(("Copying", "events"), ("Verifying", "events")) as (advance, check):
            done = await copy(old, new, advance, checking=check)
        path = database_path(source)
        if path is not None and is_backup(path):  # it gives positions out again
            await new.adopt()
        return done


def _of(config: Config, url: str) -> Config:
    """Return the settings as if the database were ``url``: its objects may lie beside it."""
    return msgspec.structs.replace(
        config, database=msgspec.structs.replace(config.database, url=url)
    )


def _refuse_the_same(source: str, target: str) -> None:
    from app.events.url import parse_url

    databases = []
    for field, url in (("SOURCE", source), ("TARGET", target)):
        try:
            database = parse_url(url)
        except InputError as error:
            message = error.message.removeprefix("database.url: ")
            raise InputError(message, field=field, hint=error.hint) from None
        if database.kind == "memory":
            raise InputError("a log in memory cannot be copied", field=field)
        databases.append(database)
    first, second = databases
    if first.path is not None and not first.path.exists():
        raise StartupError(f"There is no log at {first.path}", hint="Check SOURCE.")
    paths = [first.path and first.path.resolve(), second.path and second.path.resolve()]
    if (paths[0] is not None and paths[0] == paths[1]) or (first.dsn and first.dsn == second.dsn):
        raise InputError("is SOURCE itself", field="TARGET", hint="name another database")

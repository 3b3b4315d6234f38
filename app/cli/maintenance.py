"""Commands that move or remake data: rebuild, migrate, export, import."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from app.cli.console import duration, emit, progress, styled
from app.cli.options import json_option, with_settings
from app.cli.root import everlog
from app.errors import EverlogError, InputError
from app.settings import Loaded

if TYPE_CHECKING:
    from app.events.migration import Migration
    from app.projections.rebuild import Rebuilt


# -------------------------------------------------------------------------------- rebuild


@everlog.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@json_option()
@with_settings
def rebuild(loaded: Loaded, names: tuple[str, ...], as_json: bool) -> None:
    """Fold the log into its read models anew: history, timeline, requests, metrics; all by default.

    The old ones serve until the new ones are complete, also in a running server.
    """
    import asyncio

    done = asyncio.run(_rebuild(loaded, list(names) or None))
    if as_json:
        emit(done)
        return
    rate = done.events / max(done.seconds, 1e-9)
    click.echo(
        styled("✓ ", "good")
        + f"{', '.join(done.generations)} rebuilt from {done.events:,} events"
        + f" in {duration(done.seconds * 1e9)} ({rate:,.0f} events/s)"
    )


async def _rebuild(loaded: Loaded, names: list[str] | None) -> Rebuilt:
    from app.cli.access import reading, views_at
    from app.projections.rebuild import rebuild
    from app.projections.views import named

    projections = named(names)
    async with reading(loaded) as store:
        with progress("Rebuilding", "events") as advance:
            return await rebuild(
                store,
                views_at(loaded),
                projections,
                progress=lambda done, total, rate: advance(done, total),
            )


# -------------------------------------------------------------------------------- migrate


@everlog.command()
@click.option("--check", is_flag=True, help="Change nothing; the exit code is 1 if any is due.")
@click.option(
    "--new-incarnation",
    "anew",
    is_flag=True,
    help="Begin a new life of the log, after a restore from a dump: clients start over.",
)
@json_option()
@with_settings
def migrate(loaded: Loaded, check: bool, anew: bool, as_json: bool) -> None:
    """Bring the database to the form this version needs; `serve` does so by itself."""
    import asyncio

    due = [str(migration) for migration in _due(loaded)]
    if check and anew:
        raise InputError("cannot be used with --check", field="--new-incarnation")
    begun = None if check else asyncio.run(_open_and_close(loaded, anew=anew))
    if as_json:
        emit({"due" if check else "applied": due} | ({"incarnation": begun} if begun else {}))
    elif not due:
        click.echo(styled("✓ ", "good") + "The database is up to date.")
    else:
        verb = "is due" if check else "applied"
        for name in due:
            click.echo(f"{name} {verb}")
    if begun and not as_json:
        click.echo(f"  A new incarnation begins, so clients start over: {begun}")
    if check and due:
        raise SystemExit(1)


def _due(loaded: Loaded) -> list[Migration]:
    from app.events.migrate import pending

    return pending(loaded.config.database.url)


async def _open_and_close(loaded: Loaded, *, anew: bool) -> str | None:
    """Migrate; returns the new incarnation, if one begins: a backup's does by itself."""
    from app.events.backup import is_backup
    from app.events.open import open_store
    from app.events.url import database_path

    database = loaded.config.database
    path = database_path(database.url)
    restored = path is not None and path.exists() and is_backup(path)
    async with open_store(database.url, synchronous=database.synchronous) as store:
        if anew and not restored:
            await store.adopt()
        return store.incarnation if anew or restored else None


# ------------------------------------------------------------------------- export, import


@everlog.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), default="-")
@click.option("--after", type=click.IntRange(0), default=0, metavar="SEQ", help="Only later ones.")
@with_settings
def export_log(loaded: Loaded, file: Path, after: int) -> None:
    """Write the log as JSON Lines to FILE, or to stdout.

    Positions, hashes and seals survive; `everlog import` makes the same log of it.
    """
    import asyncio

    with _whole(file) as out:
        count = asyncio.run(_export(loaded, out, after))
    click.echo(f"{count:,} events exported", err=True)


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[BinaryIO]:
    """Open ``file`` for writing; it gets its name when all is written, and there is no half one.

    ``-`` is stdout; what is there and no plain file, such as a pipe, is written as it is.

    Raises:
        EverlogError: It cannot be written.

    """
    if str(file) == "-":
        yield sys.stdout.buffer
        return
    plain = file.is_file() or not file.exists()
    target = file.with_name(f"{file.name}.partial") if plain else file
    try:
        with target.open("wb") as out:
            yield out
        if plain:
            target.replace(file)
    except BrokenPipeError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        raise EverlogError(f"{file} cannot be written: {why}") from error
    finally:
        if plain:
            target.unlink(missing_ok=True)


async def _export(loaded: Loaded, file: BinaryIO, after: int) -> int:
    from app.cli.access import reading
    from app.events.transfer import export_events

    async with reading(loaded) as store:
        with progress("Exporting", "events") as advance:
            return await export_events(store, file, after=after, progress=advance)


@everlog.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@with_settings
def import_log(loaded: Loaded, file: Path) -> None:
    """Fill a new database from JSON Lines that `everlog export` wrote."""
    import asyncio

    count = asyncio.run(_import(loaded, file))
    click.echo(f"{styled('✓ ', 'good')}{count:,} events imported")


async def _import(loaded: Loaded, file: Path) -> int:
    from app.events.open import open_store
    from app.events.transfer import import_events

    database = loaded.config.database
    async with open_store(database.url, synchronous=database.synchronous) as store:
        with progress("Importing", "events") as advance:
            return await import_events(store, file, progress=advance)

"""Commands that move or remake data: rebuild, migrate, export, import."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import click

from app.cli.console import duration, emit, progress, styled
from app.cli.options import json_option, with_settings
from app.cli.root import everlog
from app.settings import Loaded

if TYPE_CHECKING:
    from app.events.migrate import Migration
    from app.projections.rebuild import Rebuilt


# -------------------------------------------------------------------------------- rebuild


@everlog.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@json_option()
@with_settings
def rebuild(loaded: Loaded, names: tuple[str, ...], as_json: bool) -> None:
    """Fold the log into its read models anew: history, timeline, requests; all by default.

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
        + f"{', '.join(done.names)} rebuilt from {done.events:,} events"
        + f" in {duration(done.seconds * 1e9)} ({rate:,.0f} events/s)"
    )


async def _rebuild(loaded: Loaded, names: list[str] | None) -> Rebuilt:
    from app.cli.access import reading, views_path
    from app.projections.rebuild import rebuild
    from app.projections.views import named

    projections = named(names)
    async with reading(loaded) as store:
        with progress("Rebuilding", "events") as advance:
            return await rebuild(
                store,
                str(views_path(loaded)),
                projections,
                progress=lambda done, total, rate: advance(done, total),
            )


# -------------------------------------------------------------------------------- migrate


@everlog.command()
@click.option("--check", is_flag=True, help="Change nothing; the exit code is 1 if any is due.")
@json_option()
@with_settings
def migrate(loaded: Loaded, check: bool, as_json: bool) -> None:
    """Bring the database to the form this version needs; `serve` does so by itself."""
    import asyncio

    due = [str(migration) for migration in _due(loaded)]
    if not check:
        asyncio.run(_open_and_close(loaded))
    if as_json:
        emit({"due" if check else "applied": due})
    elif not due:
        click.echo(styled("✓ ", "good") + "The database is up to date.")
    else:
        verb = "is due" if check else "applied"
        for name in due:
            click.echo(f"{name} {verb}")
    if check and due:
        raise SystemExit(1)


def _due(loaded: Loaded) -> list[Migration]:
    from app.events.migrate import migrations, outstanding
    from app.events.open import database_path

    path, known = database_path(loaded.config.database.url), migrations("sqlite")
    if path is None or not path.exists():
        return known
    from app.events.sqlite_errors import startup_error

    connection: Any = None
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        return outstanding(connection, known)
    except sqlite3.Error as error:
        raise startup_error(path, error) from error
    finally:
        if connection is not None:
            connection.close()


async def _open_and_close(loaded: Loaded) -> None:
    from app.events.open import open_store

    database = loaded.config.database
    async with open_store(database.url, synchronous=database.synchronous):
        pass

"""Commands `archive` and `restore`: move old events out of the database and back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING

import click

from app.cli.console import counted, emit, progress, size, styled
from app.cli.options import json_option, with_settings
from app.cli.root import everlog
from app.errors import InputError
from app.settings import Loaded

if TYPE_CHECKING:
    from app.events.archive import Archived, Restored
    from app.events.logstore import LogStore

DAY = 24 * 3600 * 10**9


@everlog.command()
@click.option(
    "--before",
    metavar="WHEN",
    help="Only events so many days old, or from before 2026-01-31; by default as the settings say.",
)
@click.option("--thread", metavar="THREAD", help="All of this conversation, however old.")
@click.option("--threads", is_flag=True, help="All of each conversation that is idle so long.")
@click.option("--dry-run", is_flag=True, help="Only say what would be moved.")
@json_option()
@with_settings
def archive(
    loaded: Loaded,
    before: str | None,
    thread: str | None,
    threads: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Move old events from the database into compressed objects.

    Without a flag what was streamed and stands whole elsewhere: token batches and deltas. Readers,
    export and verify find archived events as before. A SQLite log must not be in use by a server;
    a server archives by itself when `archive.after_days` is set.
    """
    import asyncio

    if thread is not None and threads:
        raise InputError("cannot go with --threads", field="--thread")
    done = asyncio.run(_archive(loaded, _limit(loaded, before, thread, threads), thread, dry_run))
    if as_json:
        emit(done)
    elif dry_run:
        click.echo(f"{counted(done.events, 'event')} ({size(done.payload)}) would be archived")
    elif not done.events:
        click.echo("There is nothing to archive.")
    else:
        click.echo(
            f"{styled('✓ ', 'good')}{counted(done.events, 'event')} archived"
            f" in {counted(len(done.segments), 'segment')}"
            f" ({size(done.payload)} of payloads, {size(done.stored)} stored)"
        )


class _Limit:
    """Before when (ns since the epoch), and whether whole conversations are meant."""

    def __init__(self, before: int, whole: bool) -> None:
        self.before, self.whole = before, whole


def _limit(loaded: Loaded, before: str | None, thread: str | None, threads: bool) -> _Limit:
    now, config = time.time_ns(), loaded.config.archive
    if before is not None:
        return _Limit(_when(before, now), threads)
    if thread is not None:
        return _Limit(now, True)
    days = config.threads_after_days if threads else config.after_days
    if not days:
        name = "archive.threads_after_days" if threads else "archive.after_days"
        raise InputError("is needed", field="--before", hint=f"Or set {name}.")
    return _Limit(now - int(days * DAY), threads)


def _when(text: str, now: int) -> int:
    """Time (ns) that a number of days or a date means."""
    with contextlib.suppress(ValueError):
        days = float(text)
        if 0 <= days < 100_000:
            return now - int(days * DAY)
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return int(datetime.fromisoformat(text).timestamp() * 1e9)
    raise InputError(
        f"{text!r} is neither a number of days nor a date",
        field="--before",
        hint="Write --before 30 or --before 2026-01-31.",
    )


async def _archive(loaded: Loaded, limit: _Limit, thread: str | None, dry_run: bool) -> Archived:
    from app.cli.access import find_thread
    from app.events.archive import archive_streamed, archive_threads, hot_threads

    async with _writing(loaded) as store:
        if thread is None and not limit.whole:
            with progress("Archiving", "events") as advance:
                return await archive_streamed(
                    store, before=limit.before, dry_run=dry_run, progress=advance
                )
        ids = [await find_thread(store, thread)] if thread else await hot_threads(store)
        with progress("Archiving", "threads") as advance:
            return await archive_threads(
                store, ids, before=limit.before, dry_run=dry_run, progress=advance
            )


@everlog.command()
@click.option("--thread", metavar="THREAD", help="Events of this conversation.")
@click.option("--all", "everything", is_flag=True, help="All archived events.")
@json_option()
@with_settings
def restore(loaded: Loaded, thread: str | None, everything: bool, as_json: bool) -> None:
    """Move archived events back into the database."""
    import asyncio

    if (thread is None) != everything:
        raise InputError("one of them is needed", field="--thread or --all")
    done = asyncio.run(_restore(loaded, thread))
    if as_json:
        emit(done)
    elif not done.events:
        click.echo("Nothing of it is archived.")
    else:
        click.echo(
            f"{styled('✓ ', 'good')}{counted(done.events, 'event')} restored"
            f" from {counted(done.segments, 'segment')}"
        )


async def _restore(loaded: Loaded, thread: str | None) -> Restored:
    from app.cli.access import find_thread
    from app.events.archive import restore
    from app.events.envelope import thread_stream

    async with _writing(loaded) as store:
        stream = thread_stream(await find_thread(store, thread)) if thread else None
        with progress("Restoring", "segments") as advance:
            return await restore(store, stream=stream, progress=advance)


@contextlib.asynccontextmanager
async def _writing(loaded: Loaded) -> AsyncIterator[LogStore]:
    """Open the log of the settings for writing; it must exist."""
    from app.cli.access import database
    from app.events.open import open_log

    database(loaded)
    async with open_log(loaded.config) as (store, _):
        yield store

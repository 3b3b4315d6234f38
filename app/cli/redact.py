"""`everlog redact`: erase what a person wrote, for ever."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from app.cli.console import counted, emit, progress, styled
from app.cli.options import json_option, with_settings
from app.cli.root import everlog
from app.errors import EverlogError, InputError
from app.settings import Loaded

if TYPE_CHECKING:
    from app.events.erasure import Plan
    from app.events.logstore import LogStore

REASON = "erased on demand"


class Done(msgspec.Struct, kw_only=True):
    """What was done. ``clean`` is False while another program keeps old copies in the file.

    ``objects`` may hold the content still: see `app.events.erasure.Redacted`.
    """

    events: int
    threads: list[str]
    records: list[int]
    objects: list[str]
    clean: bool


@everlog.command()
@click.option("--thread", "threads", multiple=True, metavar="THREAD", help="A whole conversation.")
@click.option("--user", metavar="USER", help="Conversations and everything else of a user.")
@click.option("--seq", "seqs", multiple=True, type=int, metavar="SEQ", help="A single event.")
@click.option(
    "--reason",
    metavar="TEXT",
    default=REASON,
    show_default=True,
    help="Goes into the log, so it must not name the person.",
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option()
@with_settings
def redact(
    loaded: Loaded,
    threads: tuple[str, ...],
    user: str | None,
    seqs: tuple[int, ...],
    reason: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Erase content from the log for ever, and from the read models.

    Texts, names, files, inputs and outputs go; what is left (ids, roles, times, counts) keeps the
    conversation's shape, and the log still verifies. --thread and --seq may be given several
    times. A SQLite log must not be in use by a server. Backups and exports made before are not
    touched.
    """
    import asyncio

    if sum((bool(threads), user is not None, bool(seqs))) != 1:
        raise InputError(
            "must say what to erase",
            field="--thread, --user or --seq",
            hint="Give one of them; --thread and --seq several times, if need be.",
        )
    if as_json and not yes:
        raise InputError("is needed with --json", field="--yes")
    done = asyncio.run(_redact(loaded, threads, user, seqs, reason, yes))
    if as_json:
        emit(done)
    else:
        _report(done)


async def _redact(
    loaded: Loaded,
    threads: tuple[str, ...],
    user: str | None,
    seqs: tuple[int, ...],
    reason: str,
    yes: bool,
) -> Done:
    from app.cli.access import database, views_at
    from app.events.erasure import redact
    from app.events.open import open_log

    database(loaded)
    views = views_at(loaded)
    async with open_log(loaded.config) as (store, _):
        plan = await _plan(store, threads, user, seqs)
        if plan.seqs:
            _confirm(plan, yes)
        # Now, so that an interruption does not leave them behind; and whatever there is to erase,
        # for an earlier run may have been cut short before it made them anew.
        had_views = _drop(views)
        with progress("Erasing", "events") as advance:
            done = await redact(store, plan, reason=reason, progress=advance)
        scrubbed = await store.scrub()
        if had_views:
            _drop(views)  # another command may have made them meanwhile
            await _rebuild(store, views)
    return Done(
        events=done.events,
        threads=plan.threads,
        records=done.records,
        objects=done.objects,
        clean=scrubbed,
    )


async def _plan(
    store: LogStore, threads: tuple[str, ...], user: str | None, seqs: tuple[int, ...]
) -> Plan:
    from app.cli.access import find_thread
    from app.events.erasure import plan_seqs, plan_threads, plan_user

    if threads:
        return await plan_threads(store, [await find_thread(store, given) for given in threads])
    if user is not None:
        with progress("Looking", "events") as advance:
            return await plan_user(store, user, advance)
    return await plan_seqs(store, seqs)


def _confirm(plan: Plan, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError("is needed where nobody can be asked", field="--yes")
    for thread in plan.threads:
        click.echo(f"  conversation {thread}", err=True)
    what = f"Erase the content of {counted(len(plan.seqs), 'event')} for ever?"
    if not click.confirm(what, default=False, err=True):
        raise EverlogError("nothing was erased")


# ----------------------------------------------------------------------------- read models


def _drop(views: Path | str) -> bool:
    """Delete the file of the read models; whether there are any to rebuild."""
    if isinstance(views, str):
        return True  # in Postgres the rebuild drops the old ones
    existed = views.exists()
    for end in ("", "-wal", "-shm"):
        views.with_name(views.name + end).unlink(missing_ok=True)
    return existed


async def _rebuild(store: LogStore, where: Path | str) -> None:
    from app.projections.rebuild import rebuild
    from app.projections.views import named

    with progress("Rebuilding", "events") as advance:
        await rebuild(
            store, where, named(None), progress=lambda done, total, rate: advance(done, total)
        )


# ------------------------------------------------------------------------------- reporting


def _report(done: Done) -> None:
    if not done.events:
        click.echo("There is no content left to erase.")
    else:
        where = counted(len(done.threads), "conversation") if done.threads else "the log"
        records = ", ".join(map(str, done.records[:3])) + (", …" if done.records[3:] else "")
        click.echo(
            styled("✓ ", "good")
            + f"the content of {counted(done.events, 'event')} in {where} is erased;"
            + f" recorded at seq {records}"
        )
        click.echo("  Backups, exports and copies made before still hold it.")
    if done.objects:
        click.echo(
            f"  So may {counted(len(done.objects), 'object')} from before this log was restored. "
            "Delete what no other log needs:"
        )
        for key in done.objects:
            click.echo(f"    {key}")
    if not done.clean:
        raise EverlogError(
            "another program keeps the database open, so old copies remain in its WAL",
            hint="End that program, then run the same command again.",
        )

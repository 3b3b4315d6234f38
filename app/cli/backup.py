"""`everlog backup`: a verified copy of a live SQLite log in one file."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from app.cli.console import counted, emit, phases, size, styled
from app.cli.options import json_option, with_settings
from app.cli.root import everlog
from app.errors import EverlogError
from app.settings import Loaded


@everlog.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@json_option("one JSON document; it is also what `everlog verify --head` takes")
@with_settings
def backup_log(loaded: Loaded, file: Path, force: bool, as_json: bool) -> None:
    """Write a verified backup of a SQLite log to FILE, also while a server writes it.

    To restore, stop the server and put FILE in the place of the database; the log then begins a new
    incarnation, so clients start over. Archived segments are not in FILE: copy their folder
    or bucket afterwards. Postgres has its own tools, which the command names.
    """
    from app.cli.access import database
    from app.events.backup import backup
    from app.events.objects import open_objects

    _refuse_postgres(loaded.config.database.url, file)
    path = database(loaded).path
    assert path is not None  # neither in memory nor on a server
    with phases(("Copying", "bytes"), ("Verifying", "events")) as (advance, check):
        report = backup(
            path,
            file,
            force=force,
            objects=open_objects(loaded.config),
            progress=advance,
            checking=check,
        )
    bytes_, head = file.stat().st_size, report.head
    assert head is not None
    if as_json:
        emit(
            {"file": str(file), "bytes": bytes_}
            | {"incarnation": head.incarnation, "seq": head.seq, "root": head.root}
        )
        return
    click.echo(
        styled("✓ ", "good")
        + f"{counted(report.events, 'event')} in {file} ({size(bytes_)}), verified"
    )
    click.echo(f"  root {head.root}")


def _refuse_postgres(url: str, file: Path) -> None:
    from app.events.url import parse_url

    database = parse_url(url)
    if database.kind == "postgres":
        name = shlex.quote(str(file))
        raise EverlogError(
            "Postgres backs its databases up itself, also while servers write",
            hint=f"Run: pg_dump --format=custom --file={name} {shlex.quote(database.shown)}\n"
            "(or pg_basebackup for the whole server); docs/operations.md says how to restore.",
        )

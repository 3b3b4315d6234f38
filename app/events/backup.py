"""A backup of a live SQLite log: one snapshot in one file, verified before it gets its name.

The pages are copied inside a read transaction, so a server may go on writing; in WAL mode that
holds the snapshot still and nobody waits. The file is marked: whoever opens it for writing begins
a new incarnation, since a log that is put back gives positions out again that clients have seen.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing, nullcontext, suppress
from pathlib import Path

from app.errors import InputError
from app.events.objects import Objects
from app.events.sqlite import SqliteStore
from app.events.sqlite_errors import database_uri, store_error
from app.events.sqlite_sql import BACKUP
from app.events.store import StoreError
from app.events.verify import Report, verify

__all__ = ["backup", "is_backup"]

PAGES = 1_024
"""Pages (of 4 kB) copied in one step."""

Progress = Callable[[int, int], None]


def backup(
    database: Path,
    file: Path,
    *,
    force: bool = False,
    objects: AbstractAsyncContextManager[Objects] | None = None,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> Report:
    """Write a verified backup of a log. For commands: not from a running event loop.

    Args:
        database: The log, which a server may be writing.
        file: Where to; appears only when it is complete, verified and on the disk.
        force: Replace ``file`` if it exists.
        objects: Where archived events are, to verify them too.
        progress: Called with bytes done and bytes in all.
        checking: Called with events verified and events in all.

    Returns:
        What the verification found: nothing wrong, and the head to anchor.

    Raises:
        InputError: ``file`` cannot be written there (field ``FILE``).
        StoreError: The log cannot be read, is damaged, or the disk is full; ``file`` is as before.

    """
    _refuse(database, file, force)
    partial = file.with_name(file.name + ".partial")
    try:
        _snapshot(database, partial, progress)
        report = asyncio.run(_verify(partial, objects, checking))
        if not report.ok:
            raise StoreError(
                f"the log is damaged: {report.problems[0].message}", hint="see: everlog verify"
            )
        _publish(partial, file, force)
    finally:
        for name in (partial, *_beside(partial)):
            name.unlink(missing_ok=True)
    return report


async def _verify(
    path: Path, objects: AbstractAsyncContextManager[Objects] | None, progress: Progress | None
) -> Report:
    async with objects or nullcontext() as place:
        store = await SqliteStore.open(path, read_only=True)
        if place is not None:
            store.attach(place)
        try:
            return await verify(store, progress)
        finally:
            await store.aclose()


def is_backup(path: Path) -> bool:
    """Whether a file is a backup that was not put back yet."""
    with closing(_connect(path, "ro")) as conn:
        return bool(conn.execute("PRAGMA user_version").fetchone()[0] == BACKUP)


def _refuse(database: Path, file: Path, force: bool) -> None:
    if not file.name or file.is_dir():
        raise InputError(f"{file} is not a file name", field="FILE")
    if not file.parent.is_dir():
        raise InputError(f"there is no directory {file.parent}", field="FILE")
    if file.exists():
        if file.samefile(database):
            raise InputError("is the log itself", field="FILE", hint="name another file")
        if not force:
            raise _exists(file)
        if any(name.exists() for name in _beside(file)):
            raise InputError(
                f"{file} is in use as a database", field="FILE", hint="name another file"
            )


def _exists(file: Path) -> InputError:
    return InputError(
        f"{file} exists", field="FILE", hint="name another file, or replace it with --force"
    )


def _snapshot(database: Path, partial: Path, progress: Progress | None) -> None:
    for name in (partial, *_beside(partial)):
        name.unlink(missing_ok=True)
    try:
        with closing(_connect(database, "ro")) as source, closing(_connect(partial, "rwc")) as copy:
            size = source.execute("PRAGMA page_size").fetchone()[0]
            copy.execute("PRAGMA synchronous = OFF")  # synced as a whole, before it gets its name
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM log").fetchone()  # here the snapshot is taken

            def step(status: int, left: int, total: int) -> None:
                if progress is not None:
                    progress((total - left) * size, total * size)

            source.backup(copy, pages=PAGES, progress=step)
            source.execute("ROLLBACK")
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, also on a read-only disk
            copy.execute(f"PRAGMA user_version = {BACKUP}")
    except sqlite3.Error as error:
        raise store_error(partial if _full(error) else database, error) from error


def _publish(partial: Path, file: Path, force: bool) -> None:
    """Give the file its name, durably."""
    _sync(partial)
    if force:
        partial.replace(file)
    else:
        try:
            os.link(partial, file)  # fails if somebody else was faster
        except FileExistsError:
            raise _exists(file) from None
        except OSError:  # a file system without hard links
            partial.rename(file)
    with suppress(OSError):  # not every file system can
        _sync(file.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> list[Path]:
    return [path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal")]


def _full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_CANTOPEN")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(database_uri(path, mode), uri=True, isolation_level=None)

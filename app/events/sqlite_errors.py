"""What SQLite's errors mean to a person."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from app.errors import StartupError
from app.events.store import StoreError

__all__ = [
    "database_uri",
    "startup_error",
    "startup_errors",
    "store_error",
    "warn_about_old_sqlite",
]

log = logging.getLogger(__name__)


def database_uri(path: Path, mode: str) -> str:
    """SQLite URI of a file; ``mode`` is ``ro``, ``rw`` or ``rwc`` (create)."""
    return f"file:{quote(os.fspath(path))}?mode={mode}"


def warn_about_old_sqlite() -> None:
    """Warn where the WAL-reset bug is (sqlite.org/wal.html#walresetbug): 3.7.0 to 3.51.2."""
    version = sqlite3.sqlite_version_info
    backported = {(3, 44): 6, (3, 50): 7}.get(version[:2])
    if version < (3, 51, 3) and (backported is None or version[2] < backported):
        log.warning(
            "SQLite %s has the WAL-reset bug: let no other program write this database "
            "(Everlog itself is safe: one connection writes and checkpoints)",
            sqlite3.sqlite_version,
        )


def store_error(path: Path, error: sqlite3.Error) -> StoreError:
    """Error of an operation on an open database."""
    name = _name(error)
    if name == "SQLITE_FULL":
        return StoreError(
            f"the disk that holds {path} is full", hint="free some space; the service goes on then"
        )
    damaged = name.startswith("SQLITE_CORRUPT") or name == "SQLITE_NOTADB"
    return StoreError(
        f"{path}: {error}" + (f" ({name})" if name else ""),
        hint="keep the file as it is, and restore a backup beside it" if damaged else None,
    )


def startup_error(path: Path, error: sqlite3.Error) -> StartupError:
    """Error of opening a database."""
    name = _name(error)
    if name == "SQLITE_NOTADB":
        return StartupError(
            f"{path} is not a SQLite database",
            hint="move the file away, or choose another with database.url",
        )
    if name.startswith("SQLITE_CANTOPEN"):
        if not path.exists():
            why = "does not exist" if path.parent.is_dir() else "lies in no existing directory"
            return StartupError(f"{path} {why}", hint="check database.url")
        return StartupError(f"{path} cannot be opened", hint="check who may read and write it")
    if name.startswith("SQLITE_BUSY"):
        return StartupError(
            f"{path} is locked by another program",
            hint="end what has it open for writing, such as a sqlite3 shell",
        )
    if name.startswith("SQLITE_READONLY"):
        return StartupError(f"{path} cannot be written", hint="check who may write it")
    return StartupError(f"{path} cannot be opened: {error}", hint="see: everlog doctor")


@contextmanager
def startup_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into `StartupError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise startup_error(path, error) from error


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", None) or ""

"""How commands reach the server that has a SQLite log open: one process writes such a log.

Beside the database lies a file that only its owner may read, with the server's address and a token
that opens it for as long as the server lives. Who can read it could read and write the log itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from app.events.url import Database

__all__ = ["Control", "announced", "find"]


class Control(msgspec.Struct, frozen=True):
    """Where the server is, and what opens it."""

    url: str
    token: str


def _place(database: Database) -> Path | None:
    path = database.path
    return None if path is None else path.with_name(path.name + ".control")


@contextlib.contextmanager
def announced(database: Database, control: Control) -> Iterator[None]:
    """Say where the server is, for the time of the block."""
    path = _place(database)
    if path is None:
        yield
        return
    path.unlink(missing_ok=True)  # left by a crash, perhaps with other rights
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.encode(control))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def find(database: Database) -> Control | None:
    """Return what a server says of itself; it may have crashed since. None: there is none."""
    path = _place(database)
    if path is None:
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Control)
    except (OSError, msgspec.DecodeError):
        return None

"""Database URLs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from app.errors import InputError

__all__ = ["Database", "database_path", "parse_url"]

_POSTGRES = ("postgresql", "postgres")


class Database(msgspec.Struct, frozen=True):
    """What a URL names.

    Attributes:
        kind: Which store keeps it.
        path: The file of a SQLite log.
        dsn: Where to connect, for Postgres; may hold a password.
        shown: The same for people, without a password.

    """

    kind: Literal["memory", "sqlite", "postgres"]
    path: Path | None
    dsn: str | None
    shown: str


def parse_url(url: str) -> Database:
    """Take a database URL apart.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, a bare path, ``memory:``, or
            ``postgresql://user@host:port/database?sslmode=require``. What a Postgres URL leaves out
            comes from the usual ``PG*`` variables.

    Raises:
        InputError: Anything else; its field is ``database.url``.

    """
    if url == "memory:":
        return Database("memory", None, None, "memory:")
    scheme, colon, rest = url.partition(":")
    if colon and scheme in _POSTGRES:
        return _postgres(url, rest)
    if not colon:
        path = url
    elif scheme == "sqlite" and rest.startswith("///"):
        path = rest[3:]
    elif scheme == "sqlite":
        raise InputError(
            f"{url!r} is not a path",
            field="database.url",
            hint="write sqlite:///file.db, or sqlite:////path/to/file.db",
        )
    else:
        raise InputError(
            f"{scheme!r} is no kind of database known here",
            field="database.url",
            hint="write sqlite:///file.db, a path, memory:, or postgresql://host/database",
        )
    if not path or path.endswith("/") or "\0" in path:
        raise InputError(f"{url!r} names no file", field="database.url")
    return Database("sqlite", Path(path), None, path)


def _postgres(url: str, rest: str) -> Database:
    hint = "write postgresql://user@host:5432/database, or postgresql:// and set PGHOST, PGDATABASE"
    if not rest.startswith("//") or "\0" in url or any(map(str.isspace, url)):
        raise InputError("is not a Postgres URL", field="database.url", hint=hint)
    try:
        parts = urlsplit(url)
        for place in parts.netloc.rpartition("@")[2].split(","):  # one may answer for another
            _ = urlsplit(f"//{place}").port
    except ValueError as error:
        raise InputError(
            f"is not a Postgres URL: {error}", field="database.url", hint=hint
        ) from error
    login, at, host = parts.netloc.rpartition("@")
    shown = f"postgresql://{login.partition(':')[0]}{at}{host}{parts.path}"
    return Database("postgres", None, url, shown)


def database_path(url: str) -> Path | None:
    """Return the file a URL names; None for a log that is not in a file.

    Raises:
        InputError: See `parse_url`.

    """
    return parse_url(url).path

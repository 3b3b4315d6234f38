"""Database URLs."""

from __future__ import annotations

from pathlib import Path

from app.errors import InputError

__all__ = ["database_path"]


def database_path(url: str) -> Path | None:
    """Return the file a URL names; None for ``memory:``.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, a bare path, or ``memory:``.

    Raises:
        InputError: Anything else; its field is ``database.url``.

    """
    if url == "memory:":
        return None
    scheme, colon, rest = url.partition(":")
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
            hint="write sqlite:///file.db, a path, or memory:",
        )
    if not path or path.endswith("/") or "\0" in path:
        raise InputError(f"{url!r} names no file", field="database.url")
    return Path(path)

"""Open the log that a database URL names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.errors import InputError
from app.events.logstore import LogStore
from app.events.memory import MemoryStore
from app.events.sqlite import SqliteStore, Synchronous

__all__ = ["database_path", "open_store"]


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


@asynccontextmanager
async def open_store(
    url: str, *, synchronous: Synchronous = "full", read_only: bool = False
) -> AsyncIterator[LogStore]:
    """Open a log for the time of a ``with`` block.

    Args:
        url: See `database_path`.
        synchronous: See `SqliteStore.open`.
        read_only: Read and follow only, while another process may write.

    Raises:
        InputError: The URL is malformed (field ``database.url``).
        StartupError: The database cannot be opened.

    """
    path = database_path(url)
    if path is None:
        async with MemoryStore() as memory:
            yield memory
        return
    store = await SqliteStore.open(path, synchronous=synchronous, read_only=read_only)
    try:
        yield store
    finally:
        await store.aclose()

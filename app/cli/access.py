"""The log as commands read it: without writing, beside a running server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from app.errors import EverlogError, InputError
from app.events.envelope import thread_of, thread_stream
from app.events.store import EventStore
from app.settings import Loaded

__all__ = ["find_thread", "reading", "shorten", "thread_ids"]

SHORTEST = 8


@contextlib.asynccontextmanager
async def reading(loaded: Loaded) -> AsyncIterator[EventStore]:
    """Open the log of the settings for reading."""
    from app.events.open import open_store

    async with open_store(loaded.config.database.url, read_only=True) as store:
        yield store


async def thread_ids(store: EventStore) -> list[str]:
    """Return the ids of all conversations, oldest first."""
    found = []
    async for event in store.read(types=["thread.created"]):
        thread = thread_of(event.stream)
        if thread is not None:
            found.append(thread)
    return found


async def find_thread(store: EventStore, given: str) -> str:
    """Return the id of the one conversation whose id begins with ``given``.

    Raises:
        InputError: if ``given`` is empty, or the beginning of several ids.
        EverlogError: if there is none.

    """
    if not given:
        raise InputError(
            "must not be empty", field="THREAD", hint="List them with: everlog threads"
        )
    if await store.stream_version(thread_stream(given)):
        return given
    found = [thread for thread in await thread_ids(store) if thread.startswith(given)]
    if not found:
        raise EverlogError(
            f"There is no conversation {given!r} in this log",
            hint="List them with: everlog threads",
        )
    if len(found) > 1:
        shown = ", ".join(found[-3:])
        raise InputError(
            f"{given!r} begins the ids of {len(found)} conversations",
            field="THREAD",
            hint=f"Give more characters; the latest are {shown}",
        )
    return found[0]


def shorten(ids: list[str]) -> dict[str, str]:
    """Return for each id its shortest beginning that no other id shares, 8 characters at least."""
    short = {}
    ordered = sorted(set(ids))
    for place, name in enumerate(ordered):
        shared = max(
            (
                _common(name, ordered[near])
                for near in (place - 1, place + 1)
                if 0 <= near < len(ordered)
            ),
            default=0,
        )
        short[name] = name[: max(SHORTEST, shared + 1)]
    return short


def _common(a: str, b: str) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )

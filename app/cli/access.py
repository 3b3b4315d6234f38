"""The log as commands read it: without writing, beside a running server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import EverlogError, InputError
from app.events.envelope import request_stream, thread_of, thread_stream
from app.events.store import EventStore
from app.settings import Loaded

if TYPE_CHECKING:
    from app.events.logstore import LogStore
    from app.events.url import Database
    from app.projections.views import Views

__all__ = [
    "database",
    "find_request",
    "find_thread",
    "reading",
    "shorten",
    "thread_ids",
    "viewing",
    "views_at",
]

SHORTEST = 8
GLANCE = 0.5


@contextlib.asynccontextmanager
async def reading(loaded: Loaded) -> AsyncIterator[LogStore]:
    """Open the log of the settings for reading.

    Raises:
        EverlogError: if there is none.

    """
    from app.events.open import open_log

    database(loaded)
    async with open_log(loaded.config, read_only=True) as (store, _):
        yield store


def database(loaded: Loaded) -> Database:
    """Return where the log is; a file must exist.

    Raises:
        EverlogError: if it does not, or the log is kept in memory.

    """
    from app.events.url import parse_url

    found = parse_url(loaded.config.database.url)
    if found.kind == "memory":
        raise EverlogError(
            "A log in memory can only be read by the process that has it",
            hint="Name a database with --database.",
        )
    if found.path is not None and not found.path.exists():
        raise EverlogError(
            f"There is no log at {found.path}",
            hint="Start one with `everlog serve`, or name another with --database.",
        )
    return found


def views_at(loaded: Loaded) -> Path | str:
    """Return where the read models are that `serve` keeps: beside the database, or in it."""
    from app.projections.place import views_place

    found = views_place(database(loaded))
    assert found is not None
    return found


@contextlib.asynccontextmanager
async def viewing(loaded: Loaded, store: EventStore) -> AsyncIterator[Views]:
    """Open read models that are up to date with the log.

    Those of the database are used, and kept up beside a running server; where that cannot be
    (another user's folder), they are folded in memory.

    Raises:
        EverlogError: if the log cannot be read to its end.

    """
    from app.projections.views import Views

    log = logging.getLogger("app.projections")
    level = log.level
    log.setLevel(logging.ERROR)  # trouble is raised here
    try:
        async with Views.open(store, _writable(views_at(loaded))) as views:
            await _caught_up(views, await store.head())
            yield views
    finally:
        log.setLevel(level)


async def _caught_up(views: Views, head: int) -> None:
    """Wait for the read models; a server tries again on trouble, a command says what it is."""
    while True:
        try:
            async with asyncio.timeout(GLANCE):
                await views.reached(head)
            return
        except TimeoutError:
            if views.trouble is not None:
                raise EverlogError(
                    f"The log cannot be read to its end: {views.trouble}",
                    hint="See: everlog verify",
                ) from None


def _writable(where: Path | str) -> Path | str | None:
    """Return a database, or a file that may be written or made; None for any other."""
    if isinstance(where, str):
        return where
    may = os.access(where.parent, os.W_OK) and (not where.exists() or os.access(where, os.W_OK))
    return where if may else None


async def thread_ids(store: EventStore) -> list[str]:
    """Return the ids of all conversations, oldest first."""
    found = []
    async for event in store.read(types=["thread.created"]):
        thread = thread_of(event.stream)
        if thread is not None:
            found.append(thread)
    return found


async def find_thread(store: EventStore, given: str, *, sought: str = "conversation") -> str:
    """Return the id of the one conversation whose id begins with ``given``.

    The API's ids of conversations, and of responses in them, are understood too. ``sought`` is what
    the error says was looked for.

    Raises:
        InputError: if ``given`` is empty, or the beginning of several ids.
        EverlogError: if there is none.

    """
    from app.events.ids import public_thread

    if not given:
        raise InputError(
            "must not be empty", field="THREAD", hint="List them with: everlog threads"
        )
    given = public_thread(given) or given
    if await store.stream_version(thread_stream(given)):
        return given
    found = [thread for thread in await thread_ids(store) if thread.startswith(given)]
    if not found:
        raise EverlogError(
            f"There is no {sought} {given!r} in this log",
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


async def find_request(store: EventStore, given: str) -> str | None:
    """Return the id of a request outside conversations, by its own id or that of its answer."""
    from app.events.ids import public_request

    request = public_request(given)
    return request if await store.stream_version(request_stream(request)) else None


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

"""Follow a log through its troubles."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from app.events.envelope import Event
from app.events.store import EventStore, StoreClosed, StoreError

__all__ = ["following"]

log = logging.getLogger(__name__)

FIRST, MOST = 0.1, 2.0
"""Seconds until the log is tried again: at first, and at most."""


async def following(
    store: EventStore, *, after: int = 0, stream: str | None = None, types: Sequence[str]
) -> AsyncIterator[list[Event]]:
    """Iterate for ever as `EventStore.follow` does, also over times when the log cannot be read.

    Raises:
        StoreClosed: The store was closed.

    """
    wait = FIRST
    while True:
        try:
            async for events in store.follow(after=after, stream=stream, types=types):
                after = events[-1].seq if stream is None else events[-1].version
                wait = FIRST
                yield events
        except StoreClosed:
            raise
        except StoreError as error:
            log.warning("the log cannot be read: %s; trying again", error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, MOST)

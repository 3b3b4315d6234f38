"""The queue where no engine is: what must happen to requests though nobody computes them here."""

from __future__ import annotations

import asyncio
import logging

import anyio

from app.engine.deadlines import Deadlines
from app.events.follow import following
from app.events.store import EventStore, StoreClosed, StoreError

__all__ = ["keep_queue"]

log = logging.getLogger(__name__)


async def keep_queue(store: EventStore, *, every: float) -> None:
    """Fail queued requests that are overdue, and give back those of workers that are gone.

    Engine hosts do so too; this is for logs of which none is alive. Runs until cancelled.

    Args:
        store: The log.
        every: Seconds between two looks at the leases.

    Raises:
        StoreClosed: The log was closed.

    """
    deadlines = Deadlines(store, lambda _: False)
    head = await store.head()
    await deadlines.load()

    async def watch() -> None:
        async for events in following(store, after=head, types=("request.queued",)):
            for event in events:
                deadlines.note(event)

    async with anyio.create_task_group() as group:
        group.start_soon(deadlines.run)
        group.start_soon(watch)
        while True:
            await asyncio.sleep(every)
            try:
                await store.expire()
            except StoreClosed:
                raise
            except StoreError as error:
                log.warning("cannot look at the leases of requests: %s", error)

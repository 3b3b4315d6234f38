"""Which threads somebody left in the middle of something."""

from __future__ import annotations

from collections.abc import Callable

from app.events.catalogue import RunResumed, RunStarted
from app.events.codec import decode
from app.events.envelope import thread_of
from app.events.store import EventStore
from app.projections.views import Views

__all__ = ["unfinished_threads"]

_ENDS = ("run.completed", "run.failed", "run.stopped", "run.interrupted")


async def unfinished_threads(
    store: EventStore, views: Views | None, left_behind: Callable[[str, str], bool]
) -> list[str]:
    """Return the threads with an unfinished run that was left behind, oldest first.

    Args:
        store: The log.
        views: Read models; None reads the log.
        left_behind: Tells by run and node whether nobody makes it any longer.

    """
    if views is not None:
        await views.reached(await store.head())
        rows = [(row.thread, row.run, row.node) for row in await views.unfinished_runs()]
    else:
        rows = await _unfinished(store)
    return list(dict.fromkeys(thread for thread, run, node in rows if left_behind(run, node)))


async def _unfinished(store: EventStore) -> list[tuple[str, str, str]]:
    """Thread, run and node of all unfinished runs."""
    found: dict[str, tuple[str, str, str]] = {}
    async for event in store.read(types=("run.started", "run.resumed", *_ENDS)):
        thread, run = thread_of(event.stream), event.run or ""
        if event.type in _ENDS:
            found.pop(run, None)
        elif thread is not None:
            payload = decode(event)
            if isinstance(payload, RunStarted | RunResumed):
                found[run] = (thread, run, payload.node)
    return list(found.values())

"""Which threads a process of this name left in the middle of something."""

from __future__ import annotations

from app.events.catalogue import RunStarted
from app.events.codec import decode
from app.events.envelope import thread_of
from app.events.store import EventStore
from app.projections.views import Views

__all__ = ["unfinished_threads"]

_ENDS = ("run.completed", "run.failed", "run.stopped", "run.interrupted")


async def unfinished_threads(store: EventStore, views: Views | None, node: str) -> list[str]:
    """Return the threads with an unfinished run of ``node``, oldest first."""
    if views is not None:
        await views.reached(await store.head())
        rows = await views.unfinished_runs()
        return list(dict.fromkeys(row.thread for row in rows if row.node == node))
    found: dict[str, str] = {}
    async for event in store.read(types=("run.started", "run.resumed", *_ENDS)):
        thread, run = thread_of(event.stream), event.run or ""
        if event.type in _ENDS:
            found.pop(run, None)
        elif thread is not None and event.type == "run.started":
            payload = decode(event)
            if isinstance(payload, RunStarted) and payload.node == node:
                found[run] = thread
    return list(dict.fromkeys(found.values()))

"""Which threads a process of this name left in the middle of something."""

from __future__ import annotations

from typing import Protocol

from app.events.catalogue import RunStarted
from app.events.codec import decode
from app.events.envelope import thread_of
from app.events.store import EventStore

__all__ = ["UnfinishedRuns", "unfinished_threads"]

_ENDS = ("run.completed", "run.failed", "run.stopped", "run.interrupted")


class _Row(Protocol):
    @property
    def thread(self) -> str: ...

    @property
    def node(self) -> str: ...


class UnfinishedRuns(Protocol):
    """The part of ``Views`` that recovery reads."""

    async def reached(self, seq: int) -> None:
        """Wait until the views hold the log up to ``seq``."""
        ...

    async def unfinished_runs(self) -> list[_Row]:
        """Runs that have begun and not ended."""
        ...


async def unfinished_threads(
    store: EventStore, views: UnfinishedRuns | None, node: str
) -> list[str]:
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

"""Which engine workers are alive, and what they have loaded: presence and the log together."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from app.events import codec
from app.events.catalogue import WorkerLost, WorkerStarted
from app.events.presence import WORKER, Presence
from app.events.store import Append, Appended, EventStore

__all__ = ["EVENTS", "Worker", "Workers", "presence_name", "worker_stream"]

log = logging.getLogger(__name__)

EVENTS = ("worker.started", "worker.crashed", "worker.drained", "worker.lost")

_RECENT = 16
"""Events of a worker that are looked at: the last of each kind is among them."""


def presence_name(worker: str) -> str:
    """Name under which a worker beats."""
    return WORKER + worker


def worker_stream(worker: str) -> str:
    """Stream of a worker's own events."""
    return f"worker/{worker}"


class Worker(msgspec.Struct, frozen=True):
    """A worker that is alive. ``state`` is ``starting``, ``ready`` or ``restarting``."""

    name: str
    state: str
    started: WorkerStarted | None


class Workers:
    """The workers of a log, as of the last look.

    Attributes:
        live: Those that are alive, by name.

    Args:
        store: The log.
        presence: This process among the others.

    """

    def __init__(self, store: EventStore, presence: Presence) -> None:
        self.live: dict[str, Worker] = {}
        self._store = store
        self._presence = presence
        self._known: set[str] = set()
        self._one = asyncio.Lock()

    async def look(self) -> None:
        """See who is alive now, and write down who was lost.

        Raises:
            StoreError: The log cannot be read or written.

        """
        async with self._one:
            names = {n.removeprefix(WORKER) for n in self._presence.live if n.startswith(WORKER)}
            self._known |= names
            self.live = {name: await self._worker(name) for name in sorted(names)}
            for name in sorted(self._known - names):
                if self._presence.gone(presence_name(name)):
                    await self._lost(name)
                    self._known.discard(name)

    @property
    def ready(self) -> list[WorkerStarted]:
        """What the workers that take requests have loaded."""
        return [w.started for w in self.live.values() if w.state == "ready" and w.started]

    async def _worker(self, name: str) -> Worker:
        last, started = await self._last(name)
        states = {"worker.started": "ready", "worker.crashed": "restarting"}
        return Worker(name, states.get(last or "", "starting"), started)

    async def _last(self, name: str) -> tuple[str | None, WorkerStarted | None]:
        """Type of a worker's last event, and the last time it started."""
        stream = worker_stream(name)
        version = await self._store.stream_version(stream)
        events = await self._store.fetch(after=max(0, version - _RECENT), stream=stream)
        started = None
        for event in events:
            if event.type == "worker.started":
                payload = codec.decode(event)
                started = payload if isinstance(payload, WorkerStarted) else started
        return (events[-1].type if events else None), started

    async def _lost(self, name: str) -> None:
        """Append ``worker.lost``, unless it said goodbye or another process was faster."""
        stream = worker_stream(name)
        version = await self._store.stream_version(stream)
        last, _ = await self._last(name)
        if last in ("worker.started", "worker.crashed"):
            event = codec.new(WorkerLost(worker=name))
            append = Append(stream=stream, events=[event], expected=version)
            if isinstance(await self._store.append(append), Appended):
                log.warning("worker %s is lost: what it had goes on at another", name)

"""Deadlines of requests that nobody has claimed: the core watches those that it has."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable

import msgspec

from app.events import codec
from app.events.catalogue import RequestFailed
from app.events.envelope import Event
from app.events.store import Append, EventStore, StoreClosed, StoreError

__all__ = ["Deadlines"]

log = logging.getLogger(__name__)

AGAIN = 1.0
"""Seconds until a request whose deadline passed while it was held is looked at again."""


class _Queued(msgspec.Struct):
    request: str
    deadline: int | None = None


_queued = msgspec.json.Decoder(_Queued)


class Deadlines:
    """Fails queued requests whose deadline passes.

    Args:
        store: The log.
        held: Whether this host has a request; then it is left to the core.

    """

    def __init__(self, store: EventStore, held: Callable[[str], bool]) -> None:
        self._store = store
        self._held = held
        self._due: list[tuple[float, str, str]] = []  # heap: seconds since the epoch, request, ...
        self._bell = asyncio.Event()

    async def load(self) -> None:
        """Note the deadlines of all requests that wait now."""
        waiting = await self._store.leases()
        requests = {lease.request for lease in waiting}
        for stream in {lease.stream for lease in waiting}:
            async for event in self._store.read(stream=stream, types=("request.queued",)):
                if event.request in requests:
                    self.note(event)

    def note(self, event: Event) -> None:
        """Note the deadline in a ``request.queued`` event, if it has one."""
        try:
            payload = _queued.decode(event.data)
        except msgspec.DecodeError:
            return  # whoever claims it says so
        if payload.deadline is not None:
            heapq.heappush(self._due, (payload.deadline / 1e9, payload.request, event.stream))
            self._bell.set()

    async def run(self) -> None:
        """Fail what is overdue, until cancelled.

        Raises:
            StoreClosed: The log was closed.

        """
        while True:
            self._bell.clear()
            now = time.time()
            while self._due and self._due[0][0] <= now:
                deadline, request, stream = heapq.heappop(self._due)
                if self._held(request) or not await self._fail(deadline, request, stream):
                    heapq.heappush(self._due, (now + AGAIN, request, stream))
            wait = self._due[0][0] - time.time() if self._due else None
            try:
                async with asyncio.timeout(wait):
                    await self._bell.wait()
            except TimeoutError:
                continue

    async def _fail(self, deadline: float, request: str, stream: str) -> bool:
        """Fail a request if it still waits; False to look again later."""
        try:
            leases = await self._store.leases(stream=stream)
            state = next((lease.state for lease in leases if lease.request == request), None)
            if state != "queued":
                return state is None
            payload = RequestFailed(
                request=request, code="timeout", message="its deadline passed while it was queued"
            )
            event = codec.new(payload, request=request)
            await self._store.append(Append(stream=stream, events=[event]))
        except StoreClosed:
            raise
        except StoreError as error:
            log.warning("could not fail overdue request %s: %s", request, error)
            return False
        return True

"""Claiming: which requests a host takes from the queue, and when."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from typing import NoReturn

import msgspec

from app.config import EngineConfig
from app.engine.claims import Claims
from app.engine.frames import capacity
from app.engine.room import Room
from app.engine.supervisor import CoreProcess
from app.events.envelope import Event
from app.events.presence import WORKER, Presence
from app.events.queue import queued_fields
from app.events.store import EventStore, Order, StoreError

__all__ = ["Claimer"]

SHARE = 16
"""Part of a batch that is claimed at once while there are other workers."""
URGENT = 8
"""Most requests claimed at once that a full worker makes room for."""
STEP_BACK = 0.05
"""Seconds that a full worker lets others claim first."""


class Claimer:
    """Takes requests from the queue whenever there is room for them.

    Args:
        store: The log.
        config: How much room there is, and who goes first.
        claims: What is held.
        worker: Name of the worker.
        presence: Tells whether there are other workers.

    """

    def __init__(
        self,
        store: EventStore,
        config: EngineConfig,
        claims: Claims,
        *,
        worker: str,
        presence: Presence,
    ) -> None:
        self._store = store
        self._config = config
        self._claims = claims
        self._worker = worker
        self._presence = presence
        self._order = Order(priority=config.policy == "priority", fair=config.fair)
        self._work = asyncio.Event()
        self._room = Room()
        self._more = False  # the last claim took all it could
        self._paused = False

    def opened(self) -> None:
        """There is a core that takes requests."""
        self._room.opened(time.time())

    def queued(self, event: Event) -> None:
        """A request was queued."""
        self._note(_priority(event.data))

    def abandoned(self) -> None:
        """A request is back in the queue."""
        self._note(math.inf)

    def freed(self) -> None:
        """A request is held no longer."""
        if self._more:
            self._work.set()

    def pause(self) -> None:
        """Claim nothing more, until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Claim again."""
        self._paused = False
        self._work.set()

    async def run(self, core: CoreProcess, failed: Callable[[StoreError], None]) -> NoReturn:
        """Claim requests for a core until cancelled.

        Args:
            core: Computes them.
            failed: Told when the log does not answer; then this pauses, or ends by its error.

        """
        names = sorted({self._config.model, core.ready.model})
        while True:
            self._work.clear()
            try:
                while not self._paused and await self._claim(names):
                    pass
            except StoreError as error:
                failed(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.lease_seconds / 2):
                    await self._work.wait()

    def _note(self, priority: float) -> None:
        self._room.note(priority)
        self._work.set()

    async def _claim(self, names: list[str]) -> bool:
        """Claim what there is room for; returns whether there may be more to claim now.

        Beside other workers it is a few at a time, and who has less to do goes first.
        """
        most = self._config.max_batch
        full = capacity(most)
        limit = room = full - len(self._claims)
        if room <= 0:
            self._room.filled()
            return await self._claim_urgent(names, 2 * full - len(self._claims))
        self._room.emptied(time.time())
        if any(name.startswith(WORKER) for name in self._presence.live - {self._presence.name}):
            limit = min(room, max(1, most // SHARE))
            await asyncio.sleep(STEP_BACK * len(self._claims) / full)
        self._more = await self._take(names, limit, self._order)
        return self._more

    async def _claim_urgent(self, names: list[str], room: int) -> bool:
        """Claim beyond what there is room for, if it outranks what is held: the core makes room."""
        lowest = self._claims.lowest
        self._more = True
        if room <= 0 or lowest is None or not self._order.priority or not self._room.wanted(lowest):
            return False
        above = msgspec.structs.replace(self._order, above=lowest)
        more = await self._take(names, min(room, URGENT), above)
        if not more:
            self._room.served(lowest)
        return more

    async def _take(self, names: list[str], limit: int, order: Order) -> bool:
        """Claim and compute; returns whether that took all that it could."""
        claimed = await self._store.claim(
            worker=self._worker,
            limit=limit,
            lease=self._config.lease_seconds,
            models=names,
            order=order,
        )
        for claim in claimed:
            await self._claims.take(claim, waited=self._room.waited(claim.queued.time / 1e9))
        return len(claimed) == limit


def _priority(data: bytes) -> float:
    try:
        return queued_fields(data).priority
    except msgspec.DecodeError:
        return -math.inf  # whoever claims it says so

"""Who may still queue: limits on the requests that wait in the log."""

from __future__ import annotations

import msgspec

from app.config import ServerConfig
from app.events.store import EventStore

__all__ = ["RETRY_SECONDS", "Admission", "Full"]

RETRY_SECONDS = 5
"""When it may be tried again."""


class Full(msgspec.Struct, frozen=True):
    """Too many requests wait: ``own`` ones of a tenant, or all together."""

    own: bool
    waiting: int

    def __str__(self) -> str:
        whose = "of your requests" if self.own else "requests"
        return f"{self.waiting} {whose} wait to be computed already; try again later"


class Admission:
    """Looks before a request is queued.

    Those that come at the same time do not see each other: a limit can be exceeded by as many.

    Args:
        store: The log.
        config: ``max_queue`` and ``max_queue_tenant``; 0 is no limit.

    """

    def __init__(self, store: EventStore, config: ServerConfig) -> None:
        self._store = store
        self._total, self._own = config.max_queue, config.max_queue_tenant

    async def check(self, tenant: str) -> Full | None:
        """Why a tenant must not queue anything now."""
        if not (self._total or self._own):
            return None
        own, total = await self._store.waiting(tenant)
        if self._own and own >= self._own:
            return Full(True, own)
        return Full(False, total) if self._total and total >= self._total else None

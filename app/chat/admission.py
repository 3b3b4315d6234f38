"""Who may still queue: limits on the requests that wait in the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.config import ServerConfig
from app.errors import EverlogError
from app.events.store import EventStore

__all__ = ["RETRY_SECONDS", "Admission", "Full"]

RETRY_SECONDS = 5
"""When it may be tried again."""


class Full(EverlogError):
    """Too many requests wait: ``own`` ones of a tenant, or all together."""

    def __init__(self, *, own: bool, waiting: int) -> None:
        whose = "of your requests" if own else "requests"
        super().__init__(f"{waiting} {whose} wait to be computed already; try again later")
        self.own = own


class _Tally:
    """Requests that were let in by this process, and those of them that are in the log for sure."""

    def __init__(self) -> None:
        self.begun = self.done = 0
        self.users = 0


class Admission:
    """Looks before requests are queued.

    Those of this process see each other, however many come at the same time; one that gets into
    the log during a look may be counted twice, so close to a limit a call can be refused too early.
    Those of others are seen once they are in the log: on several nodes a limit can be exceeded by a
    few.

    Args:
        store: The log.
        config: ``max_queue`` and ``max_queue_tenant``; 0 is no limit.

    """

    def __init__(self, store: EventStore, config: ServerConfig) -> None:
        self._store = store
        self._total, self._own = config.max_queue, config.max_queue_tenant
        self._all = _Tally()
        self._tallies: dict[str, _Tally] = {}

    @asynccontextmanager
    async def room(self, tenant: str, count: int = 1) -> AsyncIterator[None]:
        """Queue requests within the block, if not too many wait already.

        Args:
            tenant: Whose they are, as in ``request.queued``.
            count: How many.

        Raises:
            Full: Nothing may be queued now.

        """
        if not (self._total or self._own):
            yield
            return
        mine, everybody = self._tallies.setdefault(tenant, _Tally()), self._all
        mine.users += 1
        try:
            # What is let in, or comes into the log, while we look: the look may miss it.
            before = mine.done, everybody.done
            own, total = await self._store.waiting(tenant)
            own += mine.begun - before[0]
            total += everybody.begun - before[1]
            if self._own and own >= self._own:
                raise Full(own=True, waiting=own)
            if self._total and total >= self._total:
                raise Full(own=False, waiting=total)
            for tally in (mine, everybody):
                tally.begun += count
            try:
                yield
            finally:
                for tally in (mine, everybody):
                    tally.done += count
        finally:
            mine.users -= 1
            if not mine.users:
                del self._tallies[tenant]

"""Who may see what: a thread belongs to the user who began it."""

from __future__ import annotations

from app.events.catalogue import ThreadCreated
from app.events.codec import decode
from app.events.envelope import thread_stream
from app.events.store import EventStore

__all__ = ["LOCAL", "Owners"]

LOCAL = "local"
"""The user of a server without login."""

KEPT = 10_000


class Owners:
    """Owners of threads, read from the log itself and remembered: they never change."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._known: dict[str, str] = {}

    async def of(self, thread: str, *, fresh: bool = True) -> str | None:
        """Return the owner of a thread; None while it has none (it does not exist yet).

        Unless ``fresh``, a thread that another process began a moment ago may count as none.
        """
        known = self._known.get(thread)
        if known is not None:
            return known
        for event in await self._store.fetch(stream=thread_stream(thread), limit=4, fresh=fresh):
            if event.type == "thread.created":
                payload = decode(event)
                if isinstance(payload, ThreadCreated):
                    return self._remember(thread, payload.owner)
        return None

    async def allows(self, thread: str, user: str, *, fresh: bool = True) -> bool:
        """Whether a user may read and write a thread; anyone may begin one."""
        return await self.of(thread, fresh=fresh) in (None, user)

    def _remember(self, thread: str, owner: str) -> str:
        if len(self._known) >= KEPT:
            self._known.pop(next(iter(self._known)))
        self._known[thread] = owner
        return owner

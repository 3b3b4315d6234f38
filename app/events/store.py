"""What every store of events promises, and the typed outcomes of an append."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from app.errors import EverlogError
from app.events.envelope import Event, NewEvent

__all__ = [
    "ANY",
    "BY_PRIORITY",
    "NO_STREAM",
    "Append",
    "Appended",
    "Claimed",
    "Closed",
    "Conflict",
    "Duplicate",
    "EventStore",
    "Fence",
    "Fenced",
    "Illegal",
    "Lease",
    "Order",
    "Outcome",
    "StoreClosed",
    "StoreError",
]


class StoreError(EverlogError):
    """The store could not do it (disk full, I/O error, damaged file); nothing was written."""


class StoreClosed(StoreError):
    """The store is closing or closed, or was opened for reading only."""


ANY = -1
"""Expected version: any."""

NO_STREAM = 0
"""Expected version: the stream has no event yet."""


class Fence(msgspec.Struct, frozen=True):
    """The right to write for a request: valid while nobody claimed it with a later epoch."""

    request: str
    epoch: int


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """Events to append to one stream, all or none.

    Args:
        stream: Name of the stream.
        events: At least one event.
        expected: Version the stream must have now; `ANY` or `NO_STREAM` or a number.
        fence: Claim under which the events are written; needed for the engine's events.
        command: Id of the client's command, so that sending it again takes effect once.

    """

    stream: str
    events: Sequence[NewEvent]
    expected: int = ANY
    fence: Fence | None = None
    command: str | None = None


class Appended(msgspec.Struct, frozen=True):
    """The events are durable. ``version`` is the stream's version after them."""

    first_seq: int
    last_seq: int
    version: int


class Conflict(msgspec.Struct, frozen=True):
    """The stream was not at the expected version; it is at ``version``."""

    version: int


class Fenced(msgspec.Struct, frozen=True):
    """Somebody else holds the request now, under ``epoch``."""

    epoch: int


class Closed(msgspec.Struct, frozen=True):
    """The request has ended: its ``state`` is terminal."""

    state: str


class Illegal(msgspec.Struct, frozen=True):
    """An event of ``type`` is not allowed in ``state`` (None: the request does not exist)."""

    type: str
    state: str | None


class Duplicate(msgspec.Struct, frozen=True):
    """The command took effect before: its last event has this ``seq`` and ``version``."""

    seq: int
    version: int


Outcome = Appended | Conflict | Fenced | Closed | Illegal | Duplicate


class Claimed(msgspec.Struct, frozen=True):
    """A request a worker now holds. ``queued`` is its ``request.queued`` event."""

    request: str
    stream: str
    epoch: int
    queued: Event


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Which of the queued requests are claimed first.

    Attributes:
        priority: Those of larger priority; otherwise priority does not count.
        fair: Among equals those of tenants of which workers hold least, so that all hold the same.
        above: Only those of a larger priority.

    In the end the oldest go first.
    """

    priority: bool = True
    fair: bool = False
    above: int | None = None


BY_PRIORITY = Order()


class Lease(msgspec.Struct, frozen=True):
    """A row of the request queue: who holds what, until when (ns since the epoch, store's clock).

    ``worker`` and ``until`` are None while nobody holds it.
    """

    request: str
    stream: str
    state: str
    epoch: int
    worker: str | None
    until: int | None


class EventStore(Protocol):
    """The log. One contract suite (``tests/contract``) runs on every implementation.

    Cursors: with a ``stream``, ``after`` and ``until`` count that stream's versions; without,
    they count ``seq``. Both are exclusive/inclusive: events with ``after < position <= until``.
    """

    @property
    def incarnation(self) -> str:
        """Id of this log's life; a restored or replaced log has another."""
        ...

    async def append(self, append: Append) -> Outcome:
        """Append durably. Returns once committed, or with the reason nothing was written.

        Cancelling the caller does not take the append back: it may still be committed.

        Raises:
            StoreClosed: The store is closing or closed.
            ValueError: The append has no events, or a malformed stream name.

        """
        ...

    async def append_many(self, appends: Sequence[Append]) -> list[Outcome]:
        """Submit several appends at once; each has its own outcome."""
        ...

    async def fetch(
        self,
        *,
        after: int = 0,
        stream: str | None = None,
        types: Sequence[str] | None = None,
        until: int | None = None,
        limit: int = 1000,
        fresh: bool = True,
    ) -> list[Event]:
        """Return up to ``limit`` committed events in order; recent ones come from memory.

        Unless ``fresh``, commits of other processes that are not known here yet are left out, as
        `follow` does: with many writing processes, that spares a look into the database.
        """
        ...

    async def wait(self, *, after: int, stream: str | None = None) -> None:
        """Return once a committed event past ``after`` exists."""
        ...

    def read(
        self,
        *,
        after: int = 0,
        stream: str | None = None,
        types: Sequence[str] | None = None,
        until: int | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Event]:
        """Iterate over the committed events up to the head as of now."""
        ...

    def follow(
        self, *, after: int = 0, stream: str | None = None, types: Sequence[str] | None = None
    ) -> AsyncIterator[list[Event]]:
        """Iterate for ever: catch up, then live. Never misses, never repeats."""
        ...

    async def head(self) -> int:
        """Highest committed ``seq``; 0 for an empty log."""
        ...

    async def stream_version(self, stream: str) -> int:
        """Highest committed version of a stream; 0 if it has none."""
        ...

    async def claim(
        self,
        *,
        worker: str,
        limit: int,
        lease: float,
        models: Sequence[str] | None = None,
        order: Order = BY_PRIORITY,
    ) -> list[Claimed]:
        """Claim up to ``limit`` queued requests; by default highest priority then oldest first.

        Each claim raises the request's epoch and appends ``request.claimed`` in one transaction.
        ``lease`` is seconds on the store's clock. Requests that name a model are given only to
        workers listing it in ``models``.
        """
        ...

    async def heartbeat(self, *, worker: str, lease: float) -> list[Fence]:
        """Extend all leases of ``worker``; returns what it still holds."""
        ...

    async def expire(
        self, *, worker: str | None = None, reason: str = "lease expired"
    ) -> list[str]:
        """Append ``request.abandoned`` for leases that ran out; returns the requests.

        With ``worker`` every request it holds is given back at once, expired or not.
        """
        ...

    async def beat(self, *, node: str, lease: float) -> frozenset[str]:
        """Say that a serving process is alive for ``lease`` seconds more (store's clock).

        Returns the names of all live nodes, itself included.
        """
        ...

    async def leave(self, *, node: str) -> None:
        """Say that a serving process has come to a clean end."""
        ...

    async def leases(self, *, stream: str | None = None, open_only: bool = True) -> list[Lease]:
        """Rows of the request queue, oldest first; ``open_only`` leaves terminal ones out."""
        ...

    async def waiting(self, tenant: str) -> tuple[int, int]:
        """How many requests are queued: of a tenant (see ``request.queued``), and in all."""
        ...

    async def aclose(self) -> None:
        """Finish what was accepted, then close."""
        ...

"""`LogStore`: what is the same for every log: reading and following (`LogReader`), and writing.

A store is a `LogStore` that can write: `app.events.ledgerstore` (memory and SQLite, one writing
process) and `app.events.postgres` (many).
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from app.events.backend import Reading
from app.events.envelope import Event
from app.events.feed import Feed
from app.events.logreader import LogReader
from app.events.malformed import check
from app.events.meter import Meter
from app.events.moves import ArchiveBusy, Move, Upload
from app.events.ops import Claim, Erasure, Expire, Heartbeat, Load, Op, Redact
from app.events.queue import Request
from app.events.store import (
    BY_PRIORITY,
    Append,
    Appended,
    Claimed,
    Conflict,
    Fence,
    Order,
    Outcome,
    StoreClosed,
)
from app.events.writer import GroupCommit

__all__ = ["LogStore"]


class LogStore(LogReader):
    """An `app.events.store.EventStore`. Open one with `app.events.open.open_store`."""

    incarnation: str
    """Id of this log's life; a restored or replaced log has another."""

    def __init__(
        self, reading: Reading, feed: Feed | None, writer: GroupCommit, *, writable: bool
    ) -> None:
        super().__init__(reading, feed or Feed())
        self._writer = writer
        self._writable = writable
        self._archiving = asyncio.Lock()

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what was accepted, then close. Waiters and followers get `StoreClosed`."""

    async def append(self, append: Append) -> Outcome:
        """See `EventStore.append`."""
        check(append)
        self._refuse_unless_writable()
        return await self._writer.submit(append)  # type: ignore[no-any-return]

    async def append_many(self, appends: Sequence[Append]) -> list[Outcome]:
        """See `EventStore.append_many`."""
        for append in appends:
            check(append)
        self._refuse_unless_writable()
        return await self._writer.submit_many(appends)

    async def load(
        self,
        events: Sequence[Event],
        salts: Sequence[bytes],
        *,
        erased: Sequence[Erasure] = (),
        commands: Mapping[str, tuple[int, int, int]] | None = None,
    ) -> int:
        """Write events as they are, positions and salts included; returns the new head.

        For import: with the same salts the seals of the old log hold in the new one.

        Args:
            events: What follows the head.
            salts: Their salts, or the inner hashes of erased payloads.
            erased: Payloads of earlier events to erase too.
            commands: Commands to remember (see `commands`); known ones stay.

        Raises:
            StoreError: They do not follow the log without a gap.
            ValueError: An event cannot be stored, or one to be erased is not there.

        """
        return await self._submit(Load(events, salts, erased, commands or {}))  # type: ignore[no-any-return]

    @abstractmethod
    async def adopt(self, incarnation: str | None = None) -> str:
        """Take over the life of the log that is about to be loaded; returns the incarnation.

        Without ``incarnation`` the log begins a new life: clients drop what they have seen of
        it. A log that was restored from a backup needs that, because it gives positions out again.

        Raises:
            StoreError: The log has events, and would take over the life of another.

        """

    async def claim(
        self,
        *,
        worker: str,
        limit: int,
        lease: float,
        models: Sequence[str] | None = None,
        order: Order = BY_PRIORITY,
    ) -> list[Claimed]:
        """See `EventStore.claim`."""
        rows: list[Request] = await self._submit(Claim(worker, limit, lease, models, order))
        return [
            Claimed(row.id, row.stream, row.epoch, await self._event_at(row.queued)) for row in rows
        ]

    async def heartbeat(self, *, worker: str, lease: float) -> list[Fence]:
        """See `EventStore.heartbeat`."""
        return await self._submit(Heartbeat(worker, lease))  # type: ignore[no-any-return]

    async def expire(
        self, *, worker: str | None = None, reason: str = "lease expired"
    ) -> list[str]:
        """See `EventStore.expire`."""
        return await self._submit(Expire(worker, reason))  # type: ignore[no-any-return]

    @abstractmethod
    async def beat(self, *, node: str, lease: float) -> frozenset[str]:
        """See `EventStore.beat`."""

    @abstractmethod
    async def leave(self, *, node: str) -> None:
        """See `EventStore.leave`."""

    async def redact(
        self,
        erasures: Sequence[Erasure],
        *,
        expected: Mapping[str, int],
        reason: str,
        actor: str = "system",
    ) -> Appended | Conflict:
        """Erase payloads and append ``log.redacted``, in one transaction.

        `app.events.erasure` finds what to erase.

        Args:
            erasures: What to erase; the events are in the log.
            expected: Version of every stream they are in.
            reason: Why, for the record.
            actor: Who, for the record.

        Returns:
            Where the record is; or a `Conflict` if one of the streams has moved on.

        Raises:
            ValueError: An event is no longer where it was.

        """
        return await self._submit(Redact(erasures, expected, reason, actor))  # type: ignore[no-any-return]

    async def move(self, move: Move) -> Appended:
        """Move events between the log's table and segments, in one transaction with its record.

        `app.events.archive` says which, and sees to the objects.

        Raises:
            StoreError: One of them has to stay.
            ValueError: An event or a segment is no longer what it was.

        """
        return await self._submit(move)  # type: ignore[no-any-return]

    async def upload(self, object: str, state: Literal["noted", "doomed", "gone"]) -> None:
        """Remember an object that nothing refers to; see `Upload`.

        Raises:
            ValueError: It cannot be doomed: a segment uses it now.

        """
        await self._submit(Upload(object, state))

    @asynccontextmanager
    async def archiving(self) -> AsyncIterator[None]:
        """Hold the right to move events; one process, one task at a time.

        Raises:
            ArchiveBusy: Somebody else holds it.

        """
        if self._archiving.locked():
            raise ArchiveBusy("the archive is at work already", hint="try again later")
        async with self._archiving:
            yield

    async def scrub(self) -> bool:
        """Leave no copy of what was erased in the log's files.

        Returns:
            False if another process is in the way; try again when it is gone.

        """
        return True

    @property
    def meters(self) -> tuple[Meter, Meter]:
        """What this process measured of its commits; see `GroupCommit`: waits and sizes."""
        return self._writer.waits, self._writer.sizes

    async def _submit(self, op: Op) -> Any:
        self._refuse_unless_writable()
        return await self._writer.submit(op)

    def _refuse_unless_writable(self) -> None:
        self._refuse_if_closed()
        if not self._writable:
            raise StoreClosed("the log was opened for reading only")

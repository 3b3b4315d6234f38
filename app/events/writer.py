"""Group commit: one writer task, whose batch is what arrived while it wrote the last one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from app.events.meter import Meter
from app.events.ops import Op
from app.events.store import StoreClosed, StoreError

__all__ = ["GroupCommit"]

log = logging.getLogger(__name__)

Pending = tuple[Op, "asyncio.Future[Any]"]

WAITS = tuple(m * 10.0**e for e in range(-4, 1) for m in (1, 2.5, 5))
"""Seconds: 0.1 ms to 5 s."""
SIZES = tuple(2.0**e for e in range(14))


class GroupCommit:
    """Queue in front of a store's transactions.

    Callers await a future of their own: cancelling one takes nothing back, and cannot leave a
    transaction half done, because only the writer task touches the database.

    Args:
        commit: Writes a batch in one transaction and returns a result for each operation; a
            result that is an exception is raised to its caller alone. If it raises a
            `StoreError`, so do all calls; after any other error it is called for each operation
            alone.
        between: Called after each batch, when its callers have been answered.
        idle: Called once when nothing was written for ``idle_seconds``.
        limit: Most operations waiting; further callers wait for room.

    Attributes:
        waits: Seconds from the first operation of a batch to the batch's commit.
        sizes: Operations in a batch.

    """

    def __init__(
        self,
        commit: Callable[[list[Op]], Awaitable[Sequence[object]]],
        *,
        between: Callable[[], Awaitable[None]] | None = None,
        idle: Callable[[], Awaitable[None]] | None = None,
        idle_seconds: float = 2.0,
        limit: int = 8_192,
    ) -> None:
        self._commit = commit
        self._between = between
        self._idle = idle
        self._idle_seconds = idle_seconds
        self._limit = limit
        self._pending: list[Pending] = []
        self._room: deque[asyncio.Future[None]] = deque()
        self._bell: asyncio.Future[None] | None = None
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._since = 0.0  # when the first of those that wait came
        self.waits = Meter(WAITS)
        self.sizes = Meter(SIZES)

    def start(self) -> None:
        """Start the writer task on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="everlog-writer")

    async def submit(self, op: Op) -> Any:
        """Queue an operation and return its result once it is durable."""
        if len(self._pending) >= self._limit:
            await self._wait_for_room()
        if self._closing:
            raise StoreClosed("the store is closed")
        future = asyncio.get_running_loop().create_future()
        if not self._pending:
            self._since = time.perf_counter()
        self._pending.append((op, future))
        self._ring()
        return await future

    async def submit_many(self, ops: Sequence[Op]) -> list[Any]:
        """Queue operations side by side; their results in the same order."""
        if len(self._pending) >= self._limit:
            await self._wait_for_room()
        if self._closing:
            raise StoreClosed("the store is closed")
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in ops]
        if not self._pending:
            self._since = time.perf_counter()
        self._pending.extend(zip(ops, futures, strict=True))
        self._ring()
        return await asyncio.gather(*futures)

    async def aclose(self) -> None:
        """Refuse new operations, write the accepted ones, end the task."""
        self._closing = True
        self._make_room()
        self._ring()
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _wait_for_room(self) -> None:
        while len(self._pending) >= self._limit and not self._closing:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._room.append(future)
            await future

    def _make_room(self) -> None:
        while self._room:
            future = self._room.popleft()
            if not future.done():
                future.set_result(None)

    def _ring(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        wrote = False
        while True:
            if self._pending:
                batch, self._pending = self._pending, []
                since = self._since
                self._make_room()
                await self._write(batch)
                self.waits.observe(time.perf_counter() - since)
                self.sizes.observe(len(batch))
                await self._maintain(self._between)
                wrote = True
            elif self._closing:
                return
            else:
                self._bell = loop.create_future()
                timer = loop.call_later(self._idle_seconds, self._ring) if wrote else None
                await self._bell
                self._bell = None
                if timer is not None:
                    timer.cancel()
                if wrote and not self._pending and not self._closing:
                    wrote = False
                    await self._maintain(self._idle)

    async def _write(self, batch: list[Pending]) -> None:
        try:
            results = await self._commit([op for op, _ in batch])
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, StoreError):
                for entry in batch:  # one of them cannot be written; its neighbours can
                    await self._write([entry])
                return
            for _, future in batch:  # the storage failed; the writer lives on
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # a caller that went away must not cause a warning
            return
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    async def _maintain(self, work: Callable[[], Awaitable[None]] | None) -> None:
        if work is None:
            return
        try:
            await work()
        except Exception:
            log.exception("maintenance of the log failed")

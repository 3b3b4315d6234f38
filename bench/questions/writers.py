"""Shared by the questions about Postgres: writers that call ``append_batch``; the disk alone."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from app.events import catalogue as c
from app.events import pg
from app.events import postgres_sql as sql
from app.events.codec import new
from app.events.envelope import NewEvent, thread_stream
from app.events.ids import uuid7
from app.events.postgres import PostgresStore
from app.events.postgres_call import Call, Names
from app.events.store import Append
from bench.report import percentile
from tests.support.postgres import Cluster, new_database

__all__ = ["Pace", "Writer", "delta", "empty_log", "flushes", "server_version"]

VERSIONS = 7
"""Place of the versions among the arguments of ``append_batch``."""

TEXT = "A few words, as long as the text of a batch of tokens is. " * 2


class Pace(msgspec.Struct):
    """Seconds that each of some commits took, and seconds in all."""

    took: list[float] = []
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Commits a second."""
        return len(self.took) / self.seconds

    def at(self, percent: float) -> float:
        """Percentile, ms."""
        return percentile(self.took, percent) * 1e3


def delta(message: str = "m") -> NewEvent:
    """An event as streaming writes them."""
    return new(c.MessageDelta(message=message, text=TEXT), actor="handler:bench")


async def empty_log(server: Cluster) -> str:
    """URL of a new database with the schema of a log."""
    url = await new_database(server)
    await (await PostgresStore.open(url)).aclose()
    return url


async def server_version(server: Cluster) -> str:
    """Name and version."""
    conn = await pg.connect(server.url())
    try:
        return str(await conn.fetchval("SELECT split_part(version(), ' on ', 1)"))
    finally:
        await conn.close()


class Writer:
    """One connection that sends batches as a node does, with arguments made beforehand.

    The batch is the same each time but for its number and the versions of its streams, so that
    the time measured is the server's and the wire's.

    Args:
        conn: A connection.
        streams: Appends in a batch, each to a stream of its own.
        events: Events in an append.

    """

    def __init__(self, conn: Any, *, streams: int, events: int) -> None:
        names = [thread_stream(uuid7()) for _ in range(streams)]
        appends = [Append(stream=name, events=[delta()] * events) for name in names]
        self._call = Call(appends, Names(), time.time_ns())
        self._conn, self._events = conn, events
        self.statement = sql.APPEND_BATCH
        self.head = 0  # last seq written
        self._number = self._version = 0
        self._id, self._streams = uuid7(), streams
        self._arguments = self._call.arguments(self._id, 1, None, {})

    async def write(self) -> None:
        """One commit."""
        self._number += 1
        self._arguments[1] = self._number
        answer = await self._conn.fetchval(self.statement, *self._arguments)
        self.head = self._call.outcomes(answer)[1][-1].seq
        if self._number == 1:  # ids of streams and types are known from now on
            self._arguments = self._call.arguments(self._id, 1, None, {})
        self._version += self._events
        versions = ",".join([str(self._version)] * self._streams)
        self._arguments[VERSIONS] = f"{{{versions}}}"

    async def run(
        self, until: float, pace: Pace, after: Callable[[int], None] | None = None
    ) -> None:
        """Commit without pause until a time of ``time.perf_counter``."""
        while (start := time.perf_counter()) < until:
            await self.write()
            pace.took.append(time.perf_counter() - start)
            if after is not None:
                after(self.head)


@asynccontextmanager
async def connections(url: str, count: int, **settings: str) -> Any:
    """Several connections to a log."""
    conns = [await pg.connect(url, **settings) for _ in range(count)]
    try:
        yield conns
    finally:
        for conn in conns:
            await conn.close()


def flushes(seconds: float = 1.0) -> float:
    """How often a second the disk can be made to keep 8 KiB: what no durable commit can beat."""
    with tempfile.NamedTemporaryFile() as file:
        fd, page = file.fileno(), os.urandom(8192)
        os.pwrite(fd, bytes(16 << 20), 0)
        os.fsync(fd)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            os.pwrite(fd, page, count % 2048 * 8192)
            os.fdatasync(fd)
            count += 1
        return count / (time.perf_counter() - start)

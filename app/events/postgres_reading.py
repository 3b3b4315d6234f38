"""Reading the log from Postgres: a pool of connections, and names put in place of ids.

A read during which the database goes away is tried again until `PATIENCE` is over, so a restart of
the server is a pause for readers, not an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from app.events import pg
from app.events import postgres_archive as archive
from app.events import postgres_sql as sql
from app.events.backend import Remembered, Row
from app.events.envelope import Event
from app.events.moves import Catalog, Spans, catalog, spans
from app.events.postgres_call import Names
from app.events.store import Lease, StoreClosed, StoreError

__all__ = ["Backoff", "PostgresReading"]

T = TypeVar("T")

PATIENCE = 90.0
"""Seconds a read waits for a database that is away."""


class Backoff:
    """Growing waits between attempts: 50 ms, doubled up to a second."""

    def __init__(self) -> None:
        self._next = 0.05

    async def wait(self) -> None:
        """Wait, longer each time."""
        await asyncio.sleep(self._next)
        self._next = min(1.0, self._next * 2)


class PostgresReading:
    """Rows of the log. See `app.events.backend.Reading`.

    Args:
        pool: Connections for reading.
        names: Ids and names met so far; shared with the writer.

    """

    def __init__(self, pool: Any, names: Names) -> None:
        self._pool = pool
        self._names = names
        self._closing = False

    async def aclose(self) -> None:
        """Close all connections."""
        self._closing = True
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def run(self, work: Callable[[Any], Awaitable[T]], *, patience: float = PATIENCE) -> T:
        """Run something that may be run again on a connection.

        Raises:
            StoreError: It cannot be done, or the database stays away.

        """
        deadline, backoff = time.monotonic() + patience, Backoff()
        while True:
            if self._closing:
                raise StoreClosed("the store is closed")
            try:
                async with self._pool.acquire(timeout=pg.CONNECT_SECONDS) as conn:
                    return await work(conn)
            except pg.ERRORS as error:
                if not pg.is_transient(error) or time.monotonic() > deadline:
                    raise pg.store_error(error) from error
            await backoff.wait()

    async def fetchval(self, statement: str, *args: Any, patience: float = PATIENCE) -> Any:
        """One value."""
        return await self.run(lambda conn: conn.fetchval(statement, *args), patience=patience)

    async def fetchrows(self, statement: str, *args: Any) -> list[Any]:
        """All rows."""
        return await self.run(lambda conn: conn.fetch(statement, *args))

    # ------------------------------------------------------------------------------- events

    async def select(
        self, after: int, until: int, stream: str | None, types: Sequence[str] | None, limit: int
    ) -> list[Event]:
        """Events with ``after < position <= until`` in order."""
        statements = sql.SELECT_LOG, sql.SELECT_IN_STREAM
        rows = await self._select(statements, after, until, stream, types, limit)
        return [self._event(row) for row in rows]

    async def hot(
        self, after: int, until: int, stream: str | None, types: Sequence[str] | None, limit: int
    ) -> list[Row]:
        """Rows of the table alone, as `select` selects events."""
        statements = sql.SELECT_LOG_ROWS, sql.SELECT_ROWS_IN_STREAM
        rows = await self._select(statements, after, until, stream, types, limit)
        return [(self._event(row), row[11], row[12]) for row in rows]

    async def _select(
        self,
        statements: tuple[str, str],
        after: int,
        until: int,
        stream: str | None,
        types: Sequence[str] | None,
        limit: int,
    ) -> list[Any]:
        wanted = None if types is None else await self._type_ids(types)
        if stream is None:
            rows = await self.fetchrows(statements[0], after, until, limit, wanted)
        else:
            id = await self._stream_id(stream)
            if id is None:
                return []
            until = min(until, 2**31 - 1)
            rows = await self.fetchrows(statements[1], after, until, limit, wanted, id)
        await self._meet(rows)
        return rows

    async def catalog(self, after: int, until: int, stream: str | None) -> Catalog:
        """Segments with events at ``after < position <= until``; one look."""
        if stream is None:
            return catalog(await self.fetchrows(archive.SELECT_SEGMENTS, after, until))
        until = min(until, 2**31 - 1)
        rows = await self.fetchrows(archive.SELECT_SEGMENTS_OF_STREAM, after, until, stream)
        return catalog(rows)

    async def spans(self, object: str) -> Spans | None:
        """What the catalog says of a segment's streams."""
        return spans(await self.fetchrows(archive.SELECT_SPANS, object))

    async def uploads(self) -> list[str]:
        """Objects that no segment refers to."""
        return [row[0] for row in await self.fetchrows(archive.SELECT_UPLOADS)]

    async def rows(self, after: int, limit: int) -> list[Row | StoreError]:
        """Rows with salt and leaf. One whose names are gone shows ``?`` in their place."""
        rows = await self.fetchrows(sql.SELECT_ROWS, after, limit)
        await self._meet(rows)
        return [(self._event(row), row[11], row[12]) for row in rows]

    async def sound(self, after: int, until: int) -> list[bytes] | None:
        """There is nothing quicker than `rows`."""
        return None

    async def leaves(self, after: int, until: int) -> list[bytes]:
        """Leaf hashes of ``after < seq <= until``."""
        return [row[0] for row in await self.fetchrows(sql.SELECT_LEAVES, after, until)]

    async def head(self) -> int:
        """Highest seq stored."""
        return int(await self.fetchval(sql.SELECT_HEAD))

    async def version(self, stream: str) -> int:
        """Highest version of a stream stored."""
        return int(await self.fetchval(sql.SELECT_VERSION, stream))

    async def leases(self, stream: str | None, open_only: bool) -> list[Lease]:
        """Rows of the request table, oldest first."""
        rows = await self.fetchrows(sql.SELECT_LEASES, stream, open_only)
        return [Lease(*row) for row in rows]

    async def waiting(self, tenant: str) -> tuple[int, int]:
        """How many requests are queued: of a tenant, and in all."""
        ((own, total),) = await self.fetchrows(sql.COUNT_WAITING, tenant)
        return own, total

    async def commands(self, after: str, limit: int) -> list[Remembered]:
        """Commands that took effect lately, ordered by id."""
        rows = await self.fetchrows(sql.SELECT_REMEMBERED, after, limit)
        return [(row[0], row[1], row[2], row[3]) for row in rows]

    async def check(self) -> list[str]:
        """Nothing: Postgres checks itself (see pg_amcheck and data checksums)."""
        return []

    # -------------------------------------------------------------------------------- names

    async def _stream_id(self, stream: str) -> int | None:
        known = self._names.ids.get(stream)
        if known is None:
            for name, id in await self.fetchrows(sql.SELECT_STREAM_IDS, [stream]):
                self._names.learn_stream(name, id)
                known = id
        return known

    async def _type_ids(self, types: Sequence[str]) -> list[int]:
        if not all(name in self._names.types for name in types):
            await self._learn_types()
        return [self._names.types[name] for name in types if name in self._names.types]

    async def _learn_types(self) -> None:
        for name, id in await self.fetchrows(sql.SELECT_TYPES):
            self._names.learn_type(name, id)

    async def _meet(self, rows: Sequence[Any]) -> None:
        """Learn the names of all ids in rows of events."""
        names = self._names
        unknown = {row[1] for row in rows} - names.names.keys()
        if unknown:
            for id, name in await self.fetchrows(sql.SELECT_STREAM_NAMES, list(unknown)):
                names.learn_stream(name, id)
        if {row[3] for row in rows} - names.type_names.keys():
            await self._learn_types()

    def _event(self, row: Any) -> Event:
        seq, stream, version, type, schema, time, actor, request, run, cause, data, *_ = row
        stream = self._names.names.get(stream, "?")
        type = self._names.type_names.get(type, "?")
        return Event(seq, stream, version, type, schema, time, actor, request, run, cause, data)

"""The one connection of a process that writes: made again until the database answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg

from app.events import pg
from app.events.postgres_reading import Backoff

__all__ = ["WritingConnection"]

log = logging.getLogger(__name__)

T = TypeVar("T")

CLOSE_SECONDS = 5.0
"""How long closing waits for a database that is away."""


class WritingConnection:
    """Runs one thing at a time, again and again if need be.

    Args:
        dsn: Where to connect.
        settings: Server settings of the connection.
        check: Looks at each new connection; raises a `StoreError` if it leads to another log.

    """

    def __init__(
        self, dsn: str, settings: dict[str, str], check: Callable[[Any], Awaitable[None]]
    ) -> None:
        self._dsn = dsn
        self._settings = settings
        self._check = check
        self._conn: Any = None
        self._closing_at: float | None = None

    async def open(self) -> None:
        """Connect now, while there is room; readers could take the last connections.

        Raises:
            StartupError: It cannot be done now.

        """
        try:
            self._conn = await self._connect()
        except pg.ERRORS as error:
            raise pg.startup_error(self._dsn, error) from error

    def give_up_soon(self) -> None:
        """The store is closing: a database that is away is waited for a few seconds more."""
        self._closing_at = time.monotonic()

    async def aclose(self) -> None:
        """Close the connection."""
        conn, self._conn = self._conn, None
        if conn is not None:
            await pg.close(conn)

    async def run(self, work: Callable[[Any], Awaitable[T]], *, once: bool = False) -> T:
        """Run something until the database has answered.

        Args:
            work: Takes the connection. It may be run again after its answer was lost.
            once: Raise instead of trying again.

        Raises:
            StoreError: The database refused; or it stays away while the store closes.
            ValueError: Values cannot be stored.

        """
        backoff = Backoff()
        while True:
            try:
                if self._conn is None or self._conn.is_closed():
                    self._conn = await self._connect()
                return await work(self._conn)
            except asyncpg.DataError as error:
                raise ValueError(f"an event cannot be stored: {error}") from error
            except pg.ERRORS as error:
                await self._drop_unless_usable(error)
                late = self._closing_at is not None and (
                    time.monotonic() > self._closing_at + CLOSE_SECONDS
                )
                if once or late or not pg.is_transient(error):
                    raise pg.store_error(error) from error
                log.warning("the log's database is away, trying again: %s", error)
            await backoff.wait()

    async def _drop_unless_usable(self, error: BaseException) -> None:
        """After anything but an answer of the server nobody knows what the connection is at."""
        if not isinstance(error, asyncpg.PostgresError):
            await self.aclose()

    async def _connect(self) -> Any:
        conn = await pg.connect(self._dsn, pg.ANSWER_SECONDS, **self._settings)
        try:
            await self._check(conn)
        except BaseException:
            await pg.close(conn)
            raise
        return conn

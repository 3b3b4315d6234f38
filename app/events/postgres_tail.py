"""The tail of a log that other processes write to: one reader a node, woken by notifications.

A notification is a hint: its loss costs latency, never events, because the reader also looks by
itself. Nodes tell each other with one NOTIFY every few milliseconds at most, in a transaction of
its own: inside an append its lock would make all writers of the server wait for each other's flush.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec.structs import astuple

from app.events import pg
from app.events.envelope import Event
from app.events.feed import Feed
from app.events.postgres_reading import Backoff, PostgresReading
from app.events.store import StoreClosed

__all__ = ["Listener", "Notifier", "Tail", "channel_of", "is_same"]

log = logging.getLogger(__name__)

PAGE = 1_000

LAST = 2**62

FAR = 20_000
"""So far behind, the feed begins anew at the head instead of reading everything."""

POLL_SECONDS = 0.25
"""How often the tail looks without having been told."""

NOTIFY_SECONDS = 0.005
"""Least time between two notifications."""

PROBE_SECONDS = 5.0
"""How often the listening connection is tried; a dead one says nothing by itself."""


def is_same(seen: Event | None, there: Sequence[Any]) -> bool:
    """Whether fields of an event, beginning with ``seq``, are those of one seen (or not known).

    Its data does not count: it may have been erased.
    """
    return seen is None or astuple(seen)[:10] == tuple(there)[:10]


def channel_of(schema: str) -> str:
    """Channel of the log in a schema."""
    return f"everlog.{schema}"[:63]


class _OtherLog(Exception):
    """The database does not hold what was published."""


class Tail:
    """Publishes commits of all nodes to the feed, in order.

    Attributes:
        position: Last seq published.
        last: The event there, as far as known.

    Args:
        reading: Where events are read.
        feed: Where they are published.
        published: Called with events before they are; with none when some were left out.

    """

    def __init__(
        self, reading: PostgresReading, feed: Feed, published: Callable[[Sequence[Event]], None]
    ) -> None:
        self._reading = reading
        self._feed = feed
        self._published = published
        self._bell = asyncio.Event()
        self.position = 0
        self.last: Event | None = None

    async def begin(self) -> None:
        """Begin after the head as it is now."""
        self.position = await self._reading.head()
        found = await self._reading.select(self.position - 1, self.position, None, None, 1)
        self.last = found[0] if found else None
        self._feed.reset(self.position + 1)

    def ring(self, head: int = LAST) -> None:
        """There may be news up to ``head``. What this node wrote itself is none."""
        if head > self.position:
            self._bell.set()

    def publish(self, events: Sequence[Event]) -> None:
        """Publish commits of this node, unless others came before them: then read those first."""
        if events and events[0].seq == self.position + 1:
            self._advance(events)
        else:
            self.ring()

    def _advance(self, events: Sequence[Event]) -> None:
        self.position, self.last = events[-1].seq, events[-1]
        self._published(events)
        self._feed.publish(events)

    async def run(self) -> None:
        """Read until cancelled, or until the log is found to be another. No error ends it."""
        backoff = Backoff()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._bell.wait()
            self._bell.clear()
            try:
                await self._catch_up()
                backoff = Backoff()
            except StoreClosed:
                return
            except _OtherLog as error:
                log.error("%s", error)
                return
            except Exception:
                log.exception("cannot read the tail of the log; trying again")
                await backoff.wait()

    async def _catch_up(self) -> None:
        while True:
            position, last = self.position, self.last
            events = await self._reading.select(position - 1, LAST, None, None, PAGE)
            full = len(events) == PAGE
            if events and events[0].seq == position and not is_same(last, astuple(events[0])):
                raise _OtherLog(
                    f"the database is an older one: event {position} is not the one that was seen; "
                    "after a restore: everlog migrate --new-incarnation; then restart"
                )
            events = [event for event in events if event.seq > self.position]
            if not events and not full:
                return
            # Archived events are missing here; there is no gap of any other kind.
            whole = bool(events) and events[-1].seq - self.position == len(events)
            if not whole or (full and await self._reading.head() > self.position + FAR):
                self._skip_to(await self._reading.head())
                return
            self._advance(events)
            if not full:
                return

    def _skip_to(self, head: int) -> None:
        """Forget the ring: followers read what is between from the database."""
        self.position, self.last = head, None
        self._feed.reset(head + 1)
        self._published(())
        self._feed.wake(None)


class Listener:
    """The node's one connection that listens; made again whenever it is lost.

    Args:
        connect: Opens a connection.
        channel: What to listen to.
        heard: Called at each notification with the head it tells of, and after each new
            connection with `LAST`.

    """

    def __init__(
        self, connect: Callable[[], Awaitable[Any]], channel: str, heard: Callable[[int], None]
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._heard = heard

    async def run(self) -> None:
        """Listen until cancelled."""
        backoff = Backoff()
        while True:
            try:
                conn = await self._connect()
                try:
                    await conn.add_listener(self._channel, self._hear)
                    self._heard(LAST)  # what came before we listened
                    backoff = Backoff()
                    await self._probe(conn)
                finally:
                    await asyncio.shield(pg.close(conn))
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.info("not listening for notifications, polling: %s", error)
            await backoff.wait()

    def _hear(self, conn: Any, pid: int, channel: str, payload: str) -> None:
        self._heard(int(payload) if payload.isdecimal() else LAST)

    async def _probe(self, conn: Any) -> None:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            await conn.execute("SELECT 1", timeout=PROBE_SECONDS)


class Notifier:
    """Tells other nodes of commits, seldom enough."""

    def __init__(self, reading: PostgresReading, channel: str) -> None:
        self._reading = reading
        self._channel = channel
        self._bell = asyncio.Event()
        self._head = 0

    def ring(self, head: int) -> None:
        """Something was committed up to ``head``."""
        self._head = head
        self._bell.set()

    async def run(self) -> None:
        """Notify until cancelled."""
        while True:
            await self._bell.wait()
            self._bell.clear()
            try:
                await self._reading.fetchval(
                    "SELECT pg_notify($1, $2)", self._channel, str(self._head), patience=0
                )
            except StoreClosed:
                return
            except Exception as error:
                log.debug("notification failed: %s", error)
            await asyncio.sleep(NOTIFY_SECONDS)

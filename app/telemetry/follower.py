"""Exports the spans of a log as they end: behind the log, never in its way.

At least once: the place is saved when the receiver has taken what came before it. A receiver that
is away is waited for; what happened meanwhile is in the log. Of several nodes one exports.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import anyio
from anyio.abc import TaskStatus

from app.events.codec import readable
from app.events.envelope import Event
from app.events.store import EventStore, StoreClosed, StoreError
from app.projections.threads import in_thread
from app.telemetry.otlp import Refused, Unreachable
from app.telemetry.place import Keeper
from app.telemetry.spans import TYPES, Fold, Span

__all__ = ["Telemetry"]

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
"""How often spans are sent while they keep coming."""
EVENTS = 1000
"""Most events that are read at once."""
SPANS = 512
"""Most spans in a message; OpenTelemetry's own default."""
STAND_BY_SECONDS = 5.0
"""How often a process looks whether it may export in place of another."""
RETRY_SECONDS = (0.5, 30.0)
"""First and longest wait after a failure."""
STREAMS = 10_000
"""Most streams that are remembered as looked up."""


class Sender(Protocol):
    """What takes spans."""

    def send(self, spans: Sequence[Span]) -> None:
        """Send them; raises `Unreachable` or `Refused`. Blocks."""
        ...

    def close(self) -> None:
        """Give up."""
        ...


class Telemetry:
    """Follows a log and exports its spans.

    Attributes:
        trouble: Why nothing can be exported now; None: all is well.

    Args:
        store: The log.
        keeper: Remembers the place.
        sender: Takes the spans.
        content: Whether they hold texts.
        every: Seconds between two messages while spans keep coming.

    """

    def __init__(
        self,
        store: EventStore,
        keeper: Keeper,
        sender: Sender,
        *,
        content: bool = False,
        every: float = EVERY_SECONDS,
    ) -> None:
        self.trouble: str | None = None
        self._store = store
        self._keeper = keeper
        self._sender = sender
        self._content = content
        self._every = every
        self._fold = Fold(content=content)
        self._seq: int | None = None  # None: another process exports, or nobody yet
        self._looked: set[str] = set()
        self._read: int | None = None  # folded up to here, not yet saved
        self._spans: list[Span] = []

    @property
    def place(self) -> int | None:
        """The last event whose spans were exported; None while another process exports."""
        return self._seq

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Export until cancelled, or until the store closes. No error of others ends it.

        Args:
            task_status: Told when the place in the log is known, if it can be: what comes then is
                exported. For `anyio.abc.TaskGroup.start`.

        """
        delay, longest = RETRY_SECONDS
        try:
            with contextlib.suppress(StoreError):
                await self._lead()
            task_status.started()
            while True:
                try:
                    await self._step()
                    self.trouble, delay = None, RETRY_SECONDS[0]
                except StoreClosed:
                    return
                except (StoreError, Unreachable) as error:
                    self.trouble = str(error)
                    log.warning("no spans exported, trying again in %.1f s: %s", delay, error)
                    await asyncio.sleep(delay)
                    delay = min(2 * delay, longest)
        finally:
            self._sender.close()
            await in_thread(self._keeper.close)

    async def _lead(self) -> int | None:
        """The place in the log, if this process exports."""
        if self._seq is None or self._keeper.lost:
            self._seq = None
            if await in_thread(self._keeper.lead):
                self._seq = await self._begin()
        return self._seq

    async def _step(self) -> None:
        seq = await self._lead()
        if seq is None:
            await asyncio.sleep(STAND_BY_SECONDS)
            return
        more = False
        if self._read is None:
            await self._store.wait(after=seq)
            more = await self._take(seq)
        await self._deliver()
        if not more:
            await asyncio.sleep(self._every)

    async def _begin(self) -> int:
        """Where to go on; a log that was never exported is exported from now on."""
        self._fold, self._looked = Fold(content=self._content), set()
        self._read, self._spans = None, []
        incarnation, head = self._store.incarnation, await self._store.head()
        seq = await in_thread(self._keeper.load, incarnation)
        if seq is None or seq > head:
            log.info("spans are exported from now on, behind event %d", head)
            await in_thread(self._keeper.save, incarnation, head)
            return head
        return seq

    async def _take(self, after: int) -> bool:
        """Fold what came; returns whether there is more."""
        head = await self._store.head()
        events = await self._store.fetch(after=after, until=head, types=TYPES, limit=EVENTS)
        for event in events:
            payload = readable(event)
            if payload is None:
                continue
            if event.stream not in self._looked and self._fold.missing(event, payload):
                await self._look_up(event)
            self._spans += self._fold.apply(event, payload)
        more = len(events) == EVENTS
        self._read = events[-1].seq if more else head
        return more

    async def _look_up(self, event: Event) -> None:
        """Fold what came before an event in its stream; those spans were exported."""
        if len(self._looked) >= STREAMS:
            self._looked.clear()
        self._looked.add(event.stream)
        after, until = 0, event.version - 1
        while after < until:
            events = await self._store.fetch(
                after=after, until=until, stream=event.stream, types=TYPES, limit=EVENTS
            )
            if not events:
                return
            for earlier in events:
                if (payload := readable(earlier)) is not None:
                    self._fold.apply(earlier, payload)
            after = events[-1].version

    async def _deliver(self) -> None:
        """Send what is folded, and remember the place."""
        while self._spans:
            await self._send(self._spans[:SPANS])
            del self._spans[:SPANS]
        assert self._read is not None
        await in_thread(self._keeper.save, self._store.incarnation, self._read)
        self._seq, self._read = self._read, None

    async def _send(self, spans: list[Span]) -> None:
        try:
            await _apart(self._sender.send, spans)
        except Refused as refusal:
            if len(spans) == 1:
                log.error(
                    "a span (%s) is left out, the receiver refuses it: %s", spans[0].name, refusal
                )
                return
            half = len(spans) // 2
            await self._send(spans[:half])
            await self._send(spans[half:])


async def _apart(send: Callable[[list[Span]], None], spans: list[Span]) -> None:
    """Send in a thread that nobody waits for: a receiver that hangs must not hold up the end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def work() -> None:
        failure: Exception | None = None
        try:
            send(spans)
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, failure)

    threading.Thread(target=work, name="everlog-telemetry", daemon=True).start()
    await done

"""The pipe from a run to the log: one for each run, strictly in order.

What a handler emits goes into a buffer; one task (`Emitter.pump`) takes everything that has
gathered and appends it in one piece, again and again, so the batch is what arrived during the last
commit (group commit). Pieces of streamed text are coalesced on the way: the first goes out at once,
later ones no more often than every ``floor_ms``, in events of at most ``max_tokens`` pieces. When
an append took longer than the floor, the text pauses for as long: a busy process or database gets
fewer and larger appends, instead of more of them the longer an answer takes. A writer that is far
ahead of the log waits for it. Adding a piece is an append to a list: no task, no
lock, no future.

Nothing is written for a run that is another's by now. Each append expects the thread where the one
before left it; if others wrote meanwhile, the pipe looks whether they ended the run or took it
over. So a process that was stopped or cut off from the log in the middle of an append finds out,
however late.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

from app.chat.errors import RunStopped
from app.config import StreamConfig
from app.errors import EverlogError
from app.events.catalogue import (
    MessageDelta,
    Payload,
    RequestQueued,
    SessionChanged,
    StepDelta,
)
from app.events.codec import new
from app.events.envelope import NewEvent
from app.events.presence import Presence
from app.events.store import ANY, Append, Appended, Conflict, EventStore

__all__ = ["MAX_UNFLUSHED", "Build", "Emitter", "Pieces"]

#: Pieces of one text that may wait for the log before its writer has to.
MAX_UNFLUSHED = 256

#: Longest pause between two appends of text, in floors.
MOST_PAUSE = 5

_TAKEN = ("run.stopped", "run.interrupted", "run.resumed")
"""What somebody else writes of a run that is not its process's any longer."""

Build = Callable[[], Payload]


class Pieces:
    """Text waiting to be written as deltas of one message or step."""

    __slots__ = ("kind", "pieces", "target")

    def __init__(self, kind: type[MessageDelta] | type[StepDelta], target: str) -> None:
        self.kind = kind
        self.target = target
        self.pieces: list[str] = []

    def payloads(self, most: int) -> list[Payload]:
        """Deltas of at most ``most`` pieces each."""
        texts = [
            "".join(self.pieces[at : at + most]) for at in range(0, len(self.pieces), max(most, 1))
        ]
        if self.kind is MessageDelta:
            return [MessageDelta(message=self.target, text=text) for text in texts]
        return [StepDelta(step=self.target, text=text) for text in texts]


class _Item:
    """A payload, or what makes it at the moment of writing."""

    __slots__ = ("build",)

    def __init__(self, build: Payload | Build) -> None:
        self.build = build


class Emitter:
    """Ordered writer of one run's events.

    Args:
        store: The log.
        stream: Stream of the thread.
        actor: ``handler:<hook>``, stands in every event.
        run: Id of the run, stands in every event.
        config: How text is coalesced.
        presence: Nothing is written while this process may be taken for gone.

    """

    def __init__(
        self,
        store: EventStore,
        stream: str,
        *,
        actor: str,
        run: str,
        config: StreamConfig,
        presence: Presence | None = None,
    ) -> None:
        self.stream = stream
        self.writing = asyncio.Lock()  # held while an append of this run is under way
        self.version = 0  # of the thread: up to here the run is known to be ours
        self.error: BaseException | None = None
        self._found = 0  # version of the thread when an append met something unexpected
        self._store = store
        self._actor = actor
        self._run = run
        self._presence = presence
        self._floor = config.floor_ms / 1000
        self._most = config.max_tokens
        self._items: list[_Item | Pieces | NewEvent] = []
        self._waiters: list[asyncio.Future[int]] = []
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._go = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._closed = False

    # ------------------------------------------------------------------------ producing

    def put(self, payload: Payload | Build) -> None:
        """Write in order, soon; callable from any thread.

        A callable is asked for the payload when it is written. Raises what the pipe failed with.
        """
        self.check()
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self._put, _Item(payload))
        else:
            self._put(_Item(payload))

    def session(self, change: SessionChanged) -> None:
        """Write with the next thing that is written, not before; callable from any thread."""
        self.check()
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self._session, change)
        else:
            self._session(change)

    async def commit(self, *payloads: Payload | Build) -> int:
        """Write in one append and wait until durable; returns the stream's version then."""
        for payload in payloads:
            self.put(payload)
        return await self.flush()

    async def flush(self) -> int:
        """Wait until everything put so far is durable; returns the stream's version then."""
        self.check()
        if not self._items and not self.writing.locked():
            return self.version
        waiter: asyncio.Future[int] = self._loop.create_future()
        self._waiters.append(waiter)
        self._go.set()
        return await waiter

    async def piece(
        self, kind: type[MessageDelta] | type[StepDelta], target: str, text: str
    ) -> None:
        """Add text to a message or step. Waits only when too much is unwritten."""
        items = self._items
        tail = items[-1] if items else None
        if isinstance(tail, Pieces) and tail.target == target and tail.kind is kind:
            waiting = tail.pieces
            waiting.append(text)
            if len(waiting) >= MAX_UNFLUSHED:
                await self.flush()
            return
        self.check()
        tail = Pieces(kind, target)
        tail.pieces.append(text)
        items.append(tail)
        self._poke()

    # -------------------------------------------------------------------------- control

    def check(self) -> None:
        """Raise if nothing can be written any more."""
        if self.error is not None:
            raise self.error
        if self._closed:
            raise EverlogError(
                "the run has ended; this call came after its handler returned",
                hint="Await every task you start in a handler before it returns; for what comes "
                "later see docs/chat.md, 'Later, and from elsewhere'.",
            )

    def stop(self) -> None:
        """Refuse from now on, and forget what is not written, but for the session's changes."""
        self.error = RunStopped()
        self._items = [
            item
            for item in self._items
            if (isinstance(item, NewEvent) and item.type == "session.changed")
            or (isinstance(item, _Item) and isinstance(item.build, SessionChanged))
        ]
        self._fail(self.error)

    def forget(self) -> None:
        """Drop what is not written: somebody else has the run."""
        self._items.clear()

    async def finish(self, *events: NewEvent, expected: int = ANY) -> bool:
        """Write ``events`` behind everything, then close. Works after `stop` as well.

        Returns False if the stream is not at version ``expected``: nothing was written, and it can
        be called again; also after an error.

        Raises:
            EverlogError, StoreClosed: The log did not take them.

        """
        if self.error is not None and not isinstance(self.error, RunStopped):
            self._items = []  # the pipe broke: only how the run ended can be told
        self._closed = True
        if self._items or events:
            await self._certain()
        async with self.writing:
            return await self._append(events, expected)

    def close(self) -> None:
        """End `pump`; nothing can be written any more."""
        self._closed = True
        self._go.set()
        if self._timer is not None:
            self._timer.cancel()

    async def pump(self) -> None:
        """Write until closed. Runs as a task of its own, so that no handler's end cuts it off."""
        while True:
            await self._go.wait()
            if self._closed:
                return
            self._go.clear()
            try:
                await self._certain()  # without the lock, or nobody could end the run meanwhile
                async with self.writing:
                    await self._write_all()
                self._rest()
            except Exception as error:
                self.error = self.error or error
                self._items.clear()
                self._fail(self.error)

    # ------------------------------------------------------------------------- internal

    def _put(self, item: _Item) -> None:
        if self.error is None:
            self._items.append(item)
            self._go.set()

    def _session(self, change: SessionChanged) -> None:
        tail = self._items[-1] if self._items else None
        if isinstance(tail, _Item) and isinstance(tail.build, SessionChanged):
            tail.build = _merged(tail.build, change)
        elif self.error is None:
            self._items.append(_Item(change))

    def _poke(self) -> None:
        """Text came into an empty buffer: write now, or when the floor has passed."""
        now = self._loop.time()
        if now >= self._due:
            self._go.set()
        elif self._timer is None:
            self._timer = self._loop.call_at(self._due, self._alarm)

    def _rest(self) -> None:
        """Text that came during an append waits as other text does; all else is written now."""
        if self._closed or self._waiters or not self._items:
            return
        if all(isinstance(item, Pieces) for item in self._items):
            self._go.clear()
            if self._timer is None:
                self._timer = self._loop.call_at(self._due, self._alarm)

    def _alarm(self) -> None:
        self._timer = None
        self._go.set()

    async def _certain(self) -> None:
        """Wait while this process may be taken for gone."""
        if self._presence is not None and not self._presence.certain:
            await self._presence.sure()

    async def _write_all(self) -> None:
        """Write what has gathered, unless the run turns out to be no longer ours."""
        while not self._closed and not await self._append(expected=self.version):
            found = self._found
            written = self._store.read(
                after=self.version, stream=self.stream, types=_TAKEN, until=found
            )
            if any([event.run == self._run async for event in written]):
                self.stop()
                return
            self.version = found

    async def _append(self, last: Sequence[NewEvent] = (), expected: int = ANY) -> bool:
        items, self._items = self._items, []
        waiters, self._waiters = self._waiters, []
        events: list[NewEvent] = []
        began = self._loop.time()
        try:
            events = self._events(items)
            if not await self._write([*events, *last], expected):
                self._items = [*events, *self._items]
                self._waiters = waiters + self._waiters
                return False
        except BaseException as error:
            if self._closed:
                self._items = [*events, *self._items]  # `finish` may be called again
            self._waiters = waiters + self._waiters
            self._fail(error)
            raise
        now = self._loop.time()
        self._due = now + max(self._floor, min(now - began, MOST_PAUSE * self._floor))
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(self.version)
        return True

    async def _write(self, events: list[NewEvent], expected: int) -> bool:
        if not events:
            return True
        append = Append(stream=self.stream, events=events, expected=expected)
        outcome = await self._store.append(append)
        if isinstance(outcome, Conflict):
            self._found = outcome.version
            return False
        if not isinstance(outcome, Appended):
            raise EverlogError(f"the log refused the run's events: {outcome}")
        self.version = outcome.version
        return True

    def _events(self, items: Sequence[_Item | Pieces | NewEvent]) -> list[NewEvent]:
        events: list[NewEvent] = []
        for item in items:
            if isinstance(item, NewEvent):
                events.append(item)
                continue
            if isinstance(item, Pieces):
                payloads = item.payloads(self._most)
            else:
                payloads = [item.build() if callable(item.build) else item.build]
            events += [self._event(payload) for payload in payloads]
        return events

    def _event(self, payload: Payload) -> NewEvent:
        request = payload.request if isinstance(payload, RequestQueued) else None
        return new(payload, actor=self._actor, run=self._run, request=request)

    def _fail(self, error: BaseException) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # seen, even if its handler is cancelled before it looks


def _merged(first: SessionChanged, then: SessionChanged) -> SessionChanged:
    """One change that does what two did."""
    values = {k: v for k, v in first.values.items() if k not in then.removed} | then.values
    removed = [k for k in (*first.removed, *then.removed) if k not in then.values]
    return SessionChanged(values=values, removed=list(dict.fromkeys(removed)))

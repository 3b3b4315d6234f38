"""The feed: recent committed events in memory, and who waits for more. No I/O.

Followers at the tail of the log read here and never touch the database. The ring is indexed by
stream, so a follower pays only for what it gets: cost does not grow with the number of streams,
followers or events kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from app.events.envelope import Event

__all__ = ["Feed"]

#: Memory an event costs beside its payload (struct, strings, list slots), in bytes; measured.
OVERHEAD = 500


class _Run:
    """A contiguous run of events, cut at the front in amortised constant time."""

    __slots__ = ("first", "items", "start")

    def __init__(self, first: int) -> None:
        self.first = first  # position of items[start]
        self.items: list[Event | None] = []
        self.start = 0

    @property
    def last(self) -> int:
        """Position of the last event; first - 1 when empty."""
        return self.first + len(self.items) - self.start - 1

    def drop_first(self) -> None:
        self.items[self.start] = None
        self.start += 1
        self.first += 1
        if self.start > 64 and self.start * 2 > len(self.items):
            del self.items[: self.start]
            self.start = 0

    def after(self, position: int, limit: int) -> list[Event]:
        begin = self.start + position + 1 - self.first
        return self.items[begin : begin + limit]  # type: ignore[return-value]


class Feed:
    """Ring of recent events with wake-ups.

    Args:
        max_events: Most events kept.
        max_bytes: Most bytes kept, payloads plus a fixed overhead for each event.

    """

    def __init__(self, *, max_events: int = 16_384, max_bytes: int = 32 << 20) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._log = _Run(1)
        self._bytes = 0
        self._streams: dict[str, _Run] = {}
        self._waiting: dict[str | None, set[Callable[[], None]]] = {}
        self.erased: Callable[[], None] | None = None
        """Called when payloads were erased: what others keep may hold them."""

    def __len__(self) -> int:
        return len(self._log.items) - self._log.start

    def publish(self, events: Sequence[Event]) -> None:
        """Add committed events, in order, and wake who waits for them."""
        if not events:
            return
        if events[0].seq != self._log.last + 1:
            self.reset(events[0].seq)
        streams = self._streams
        self._log.items.extend(events)
        self._bytes += sum([len(event.data) for event in events]) + OVERHEAD * len(events)
        for event in events:
            run = streams.get(event.stream)
            if run is None:
                run = streams[event.stream] = _Run(event.version)
            run.items.append(event)
        touched = {event.stream for event in events}
        if "log.redacted" in [event.type for event in events]:
            # What is kept may hold what was erased.
            self.reset(events[-1].seq + 1)
            if self.erased is not None:
                self.erased()
        self._evict()
        self.wake(touched)

    def reset(self, next_seq: int) -> None:
        """Forget everything kept; the next event has ``next_seq``. Waiters stay."""
        self._log = _Run(next_seq)
        self._streams.clear()
        self._bytes = 0

    def recent(
        self, after: int, stream: str | None = None, limit: int = 1000
    ) -> list[Event] | None:
        """Return up to ``limit`` events past ``after``; None if the ring does not reach back.

        ``after`` counts versions with a stream, ``seq`` without.
        """
        run = self._log if stream is None else self._streams.get(stream)
        if run is None or after < run.first - 1:
            return None
        return run.after(after, limit)

    def at(self, seq: int) -> Event | None:
        """Return the event at ``seq`` if it is kept."""
        found = self.recent(seq - 1, None, 1)
        return found[0] if found else None

    def register(self, stream: str | None, callback: Callable[[], None]) -> None:
        """Call ``callback`` at each commit to ``stream`` (None: to any) until unregistered."""
        self._waiting.setdefault(stream, set()).add(callback)

    def unregister(self, stream: str | None, callback: Callable[[], None]) -> None:
        """Undo `register`."""
        waiting = self._waiting.get(stream)
        if waiting is not None:
            waiting.discard(callback)
            if not waiting:
                del self._waiting[stream]

    @property
    def watched(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def wake(self, streams: set[str] | None) -> None:
        """Wake who waits for the streams, and for the log; None wakes everybody."""
        waiting = self._waiting
        if not waiting:
            return
        names: list[str | None] = list(waiting) if streams is None else [*streams, None]
        for name in names:
            for callback in tuple(waiting.get(name, ())):
                callback()

    def _evict(self) -> None:
        while self._bytes > self._max_bytes or len(self) > self._max_events:
            event = self._log.items[self._log.start]
            assert event is not None
            self._log.drop_first()
            self._bytes -= len(event.data) + OVERHEAD
            run = self._streams[event.stream]
            run.drop_first()
            if run.start == len(run.items):
                del self._streams[event.stream]

"""Folding batches of events into projections: the synchronous core of runner and rebuild."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from app.events.codec import Unknown
from app.events.envelope import Event
from app.projections import ledger
from app.projections.database import Connection, Trouble
from app.projections.projection import Projection
from app.projections.reading import Item, Unreadable, read
from app.projections.rows import Rows

__all__ = ["Folder", "Refused", "Standing", "fold"]

log = logging.getLogger(__name__)


class Refused(Exception):
    """A projection could not fold ``event``, or one of the burst it begins; see ``__cause__``."""

    def __init__(self, event: Event) -> None:
        super().__init__(f"event {event.seq} ({event.type})")
        self.event = event


def fold(projection: Projection, rows: Rows, items: Iterable[Item]) -> None:
    """Fold events into rows in memory.

    Raises:
        Refused: The fold raised, or it needs a payload that cannot be read.
        Trouble: Rows could not be loaded.

    """
    folds, types = projection.folds, projection.types
    each = projection.each if projection.every else None
    event = None
    try:
        for event, payload in items:
            kind = type(payload)
            if kind is Unreadable and event.type in types:
                raise payload.error  # type: ignore[union-attr]
            if each is not None and not each(rows, event):
                continue
            apply = folds.get(kind)
            if apply is not None:
                apply(rows, event, payload)
    except Trouble:
        raise  # the database, not the event
    except Exception as error:
        assert event is not None
        raise Refused(event) from error


class Standing(msgspec.Struct, frozen=True):
    """Where a projection stands, as the runner knows it."""

    seq: int
    generation: int
    error: str | None = None


class _Tracked:
    """A projection being kept up, with the rows it has in memory."""

    def __init__(self, projection: Projection) -> None:
        self.projection = projection
        self.standing = Standing(-1, -1)
        self.rows: Rows | None = None


class Folder:
    """Keeps projections up over one connection. Not thread-safe; each method is one transaction.

    ``set_name`` names these projections in these versions: who leads them, see `Connection.lead`.
    """

    def __init__(self, connection: Connection, projections: Iterable[Projection]) -> None:
        self._connection = connection
        self._tracked = [_Tracked(projection) for projection in projections]
        self._types = frozenset().union(*(t.projection.types for t in self._tracked))
        self._warned: set[str] = set()
        self.set_name = " ".join(
            sorted(f"{t.projection.name}:{t.projection.version}" for t in self._tracked)
        )

    def seen(self) -> dict[str, ledger.Position]:
        """Positions as they are now; read them before the head of the log."""
        return ledger.positions(self._connection)

    def start(
        self, seen: dict[str, ledger.Position], *, incarnation: str, head: int
    ) -> dict[str, Standing]:
        """Make all projections ready; those whose rows cannot be used start over."""
        with self._connection.transaction():
            for tracked in self._tracked:
                projection = tracked.projection
                before = seen.get(projection.name)
                reason = ledger.prepare(
                    self._connection, projection, seen=before, incarnation=incarnation, head=head
                )
                if reason is not None and before is not None:
                    log.warning("projection %s starts over: %s", projection.name, reason)
        ledger.sweep(self._connection, [t.projection.name for t in self._tracked])
        return self.refresh()

    def refresh(self) -> dict[str, Standing]:
        """Take over what other processes did."""
        now = ledger.positions(self._connection)
        for tracked in self._tracked:
            self._take_over(tracked, now.get(tracked.projection.name))
        return {t.projection.name: t.standing for t in self._tracked}

    def _take_over(self, tracked: _Tracked, now: ledger.Position | None) -> None:
        projection, known = tracked.projection, tracked.standing
        if now is None or now.version != projection.version:
            error = "its tables belong to another version of Everlog; restart this one"
            tracked.standing = Standing(known.seq, known.generation, error)
            return
        if tracked.rows is None or now.generation != known.generation:
            tracked.rows = Rows(
                self._connection,
                projection.prefix(now.generation),
                projection.tables,
                projection.pieces,
                fresh=now.seq == 0,
            )
        elif now.seq != known.seq:
            tracked.rows.forget()
        tracked.standing = Standing(now.seq, now.generation, now.error)

    def fold(self, after: int, events: Sequence[Event]) -> dict[str, Standing]:
        """Fold all events from ``after`` on: rows and checkpoints in one transaction.

        A projection that fails stands still before the event that made it fail, with the error
        in the ledger; the others go on.
        """
        items = read(events, self._types)
        self._warn(items)
        try:
            with self._connection.transaction():
                self.refresh()
                for tracked in self._tracked:
                    # Another process may have moved it back: then the runner reads again.
                    if tracked.standing.error is None and tracked.standing.seq >= after:
                        self._fold(tracked, events, items)
        except BaseException:
            for tracked in self._tracked:
                tracked.rows, tracked.standing = None, Standing(-1, -1)
            raise
        return {t.projection.name: t.standing for t in self._tracked}

    def _fold(self, tracked: _Tracked, events: Sequence[Event], items: list[Item]) -> None:
        rows, projection, standing = tracked.rows, tracked.projection, tracked.standing
        assert rows is not None
        start = bisect.bisect_right(events, standing.seq, key=lambda event: event.seq)
        if start:  # it is ahead of the others
            events = events[start:]
            items = read(events, self._types)
        if not events:
            return
        end, error = len(events), None
        try:
            fold(projection, rows, items)
        except Refused:
            end, error = self._fold_singly(projection, rows, events)
        failed = self._flush(projection, rows)
        if failed is not None:
            end, error = 0, f"event {events[0].seq} or one after it: {failed!r}"
        seq = events[end - 1].seq if end else standing.seq
        ledger.move(self._connection, projection.name, seq)
        if error is not None:
            ledger.halt(self._connection, projection.name, error)
        tracked.standing = Standing(seq, standing.generation, error)

    def _fold_singly(
        self, projection: Projection, rows: Rows, events: Sequence[Event]
    ) -> tuple[int, str | None]:
        """Fold what comes before the first event that is refused; how many, and why that one is."""
        rows.forget()
        try:
            fold(projection, rows, self._singly(events))
        except Refused as refused:
            log.exception("projection %s cannot fold %s", projection.name, refused)
            end = bisect.bisect_left(events, refused.event.seq, key=lambda event: event.seq)
            rows.forget()
            fold(projection, rows, self._singly(events[:end]))
            return end, f"{refused}: {refused.__cause__!r}"
        return len(events), None

    def _singly(self, events: Sequence[Event]) -> Iterator[Item]:
        """Every event alone, so that the one to blame can be told."""
        for event in events:
            yield from read([event], self._types)

    def _flush(self, projection: Projection, rows: Rows) -> Exception | None:
        """Write what changed, or nothing and return what is wrong with it."""
        if not rows.changed:
            return None
        try:
            with self._connection.attempt():
                rows.flush()
        except Trouble:
            raise
        except Exception as reason:
            log.exception("projection %s has rows that cannot be written", projection.name)
            rows.forget()
            return reason
        return None

    def _warn(self, items: list[Item]) -> None:
        for event, payload in items:
            if type(payload) is Unknown and event.type not in self._warned:
                self._warned.add(event.type)
                log.warning(
                    "%s has schema %d, newer than this Everlog: projections pass it over",
                    event.type,
                    event.schema,
                )

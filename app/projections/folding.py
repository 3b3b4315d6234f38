"""Folding batches of events into projections: the synchronous core of runner and rebuild."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Iterable, Sequence

import msgspec

from app.errors import EverlogError
from app.events.catalogue import CATALOGUE, Payload
from app.events.codec import FAULTS, PayloadError, Unknown, decode, decoder
from app.events.envelope import Event
from app.projections import ledger
from app.projections.database import Connection, Trouble
from app.projections.projection import Projection
from app.projections.rows import Rows

__all__ = ["Folder", "Read", "Refused", "Standing", "Unreadable", "fold", "read"]

log = logging.getLogger(__name__)


class Unreadable(msgspec.Struct, frozen=True):
    """A payload that could not be decoded; it stops the projections that need it."""

    error: Exception


Read = Payload | Unknown | Unreadable | None


def read(events: Sequence[Event], types: frozenset[str], *, strict: bool = False) -> list[Read]:
    """Decode the payloads of ``types``, once for all projections; None for the rest.

    Raises:
        EverlogError: ``strict`` and a type or schema is unknown to this code.

    """
    payloads: list[Read] = []
    known = {type: decoder(type) for type in {event.type for event in events} & types}
    for event in events:
        ready = known.get(event.type)
        if ready is not None and ready[0] == event.schema:
            try:
                payloads.append(ready[1](event.data))
                continue
            except FAULTS:
                pass  # said properly below
        payloads.append(_read(event, types, strict))
    return payloads


def _read(event: Event, types: frozenset[str], strict: bool) -> Read:
    if event.type not in types:
        if strict and event.type not in CATALOGUE:
            raise _too_new(event)
        return None
    try:
        payload: Read = decode(event)
    except (PayloadError, UnicodeDecodeError) as error:
        payload = Unreadable(error)
    if strict and type(payload) is Unknown:
        raise _too_new(event)
    return payload


def _too_new(event: Event) -> EverlogError:
    return EverlogError(
        f"event {event.seq} ({event.type}, schema {event.schema}) is newer than this Everlog",
        hint="Upgrade Everlog, then rebuild again.",
    )


class Refused(Exception):
    """A projection could not fold an event: ``event``, the ``at``-th given; see ``__cause__``."""

    def __init__(self, event: Event, at: int) -> None:
        super().__init__(f"event {event.seq} ({event.type})")
        self.event, self.at = event, at


def fold(
    projection: Projection, rows: Rows, events: Sequence[Event], payloads: Sequence[Read]
) -> None:
    """Fold events into rows in memory.

    Raises:
        Refused: The fold raised, or it needs a payload that cannot be read.
        Trouble: Rows could not be loaded.

    """
    folds, types = projection.folds, projection.types
    each = projection.each if projection.every else None
    event = None
    try:
        for event, payload in zip(events, payloads, strict=True):
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
        at = bisect.bisect_left(events, event.seq, key=lambda e: e.seq)
        raise Refused(event, at) from error


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
        payloads = read(events, self._types)
        self._warn(events, payloads)
        try:
            with self._connection.transaction():
                self.refresh()
                for tracked in self._tracked:
                    # Another process may have moved it back: then the runner reads again.
                    if tracked.standing.error is None and tracked.standing.seq >= after:
                        self._fold(tracked, events, payloads)
        except BaseException:
            for tracked in self._tracked:
                tracked.rows, tracked.standing = None, Standing(-1, -1)
            raise
        return {t.projection.name: t.standing for t in self._tracked}

    def _fold(self, tracked: _Tracked, events: Sequence[Event], payloads: list[Read]) -> None:
        rows, projection, standing = tracked.rows, tracked.projection, tracked.standing
        assert rows is not None
        start = bisect.bisect_right(events, standing.seq, key=lambda event: event.seq)
        events, payloads = events[start:], payloads[start:]
        if not events:
            return
        end, error = len(events), None
        try:
            fold(projection, rows, events, payloads)
        except Refused as refused:
            log.exception("projection %s cannot fold %s", projection.name, refused)
            end, error = refused.at, f"{refused}: {refused.__cause__!r}"
            rows.forget()
            fold(projection, rows, events[:end], payloads[:end])
        failed = self._flush(projection, rows)
        if failed is not None:
            end, error = 0, f"event {events[0].seq} or one after it: {failed!r}"
        seq = events[end - 1].seq if end else standing.seq
        ledger.move(self._connection, projection.name, seq)
        if error is not None:
            ledger.halt(self._connection, projection.name, error)
        tracked.standing = Standing(seq, standing.generation, error)

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

    def _warn(self, events: Sequence[Event], payloads: list[Read]) -> None:
        for event, payload in zip(events, payloads, strict=True):
            if type(payload) is Unknown and event.type not in self._warned:
                self._warned.add(event.type)
                log.warning(
                    "%s has schema %d, newer than this Everlog: projections pass it over",
                    event.type,
                    event.schema,
                )

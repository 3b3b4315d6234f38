"""Rebuild: fill new tables from the log beside those that serve, then swap.

Blue/green: nothing a reader sees changes until one transaction lets the new generation serve and
drops the old one. The fold runs in memory, outside any transaction; only writing a batch holds
the file's lock. It may run in another process than the one that keeps the projections up.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence

import msgspec

from app.errors import EverlogError
from app.events.envelope import Event
from app.events.ids import uuid7
from app.events.store import EventStore
from app.projections import ledger
from app.projections.folding import Refused, fold, read
from app.projections.projection import Projection
from app.projections.rows import Rows
from app.projections.threads import in_thread

__all__ = ["Progress", "Rebuilt", "rebuild"]

BATCH = 5000
STALE_SECONDS = 30.0
"""A rebuild that wrote nothing for so long is dead."""

Progress = Callable[[int, int, float], None]
"""Called with events done, events in all, events per second."""


class Rebuilt(msgspec.Struct, frozen=True):
    """What a rebuild did: projections with their new generation, up to event ``seq``."""

    generations: dict[str, int]
    events: int
    seconds: float
    seq: int


async def rebuild(
    store: EventStore,
    path: str,
    projections: Sequence[Projection],
    *,
    progress: Progress | None = None,
) -> Rebuilt:
    """Rebuild projections from the first event on, in one pass, and let the result serve.

    Args:
        store: The log; may be open for reading only.
        path: File of the read models.
        projections: What to rebuild.
        progress: Told after each batch.

    Raises:
        EverlogError: Another rebuild is at work, or an event cannot be folded: it is malformed,
            or newer than this code. What served before goes on serving.

    """
    filler = _Filler(path, projections, store.incarnation)
    try:
        await in_thread(filler.begin)
        began, total = time.perf_counter(), await store.head()
        while not filler.swapped:
            events = await store.fetch(after=filler.seq, limit=BATCH)
            if events:
                await in_thread(filler.fill, events)
            else:
                await _swap(store, filler)
            if progress is not None:
                total = max(total, filler.seq)
                rate = filler.done / max(time.perf_counter() - began, 1e-9)
                progress(filler.done, total, rate)
    finally:
        await in_thread(filler.close)
    generations = {p.name: g for p, g in zip(projections, filler.generations, strict=True)}
    return Rebuilt(generations, filler.done, time.perf_counter() - began, filler.seq)


async def _swap(store: EventStore, filler: _Filler) -> None:
    """Let the new generation serve, with the file locked so that the old one cannot move on.

    What the old one has seen and the new one has not is folded first: readers never go back.
    """
    await in_thread(filler.lock)
    try:
        while events := await store.fetch(after=filler.seq, until=filler.serving(), limit=BATCH):
            await in_thread(filler.fold, events)
        await in_thread(filler.swap)
    finally:
        await in_thread(filler.unlock)


class _Filler:
    """The synchronous side: new generations of some projections, being filled."""

    def __init__(self, path: str, projections: Sequence[Projection], incarnation: str) -> None:
        self._path = path
        self._projections, self._incarnation, self._token = projections, incarnation, uuid7()
        self._types = frozenset().union(*(p.types for p in projections))
        self._rows: list[Rows] = []
        self.generations: list[int] = []
        self.seq = self.done = 0
        self.swapped = False

    def begin(self) -> None:
        """Create the tables of the new generations.

        Raises:
            EverlogError: Another rebuild is at work.

        """
        self._connection: sqlite3.Connection = ledger.connect(self._path)
        try:
            with ledger.transaction(self._connection):
                generations = [
                    ledger.take(self._connection, projection, self._token, stale=STALE_SECONDS)
                    for projection in self._projections
                ]
        except BaseException:
            self._connection.close()
            raise
        self.generations = generations
        self._rows = [
            Rows(self._connection, p.prefix(generation), p.tables, p.pieces, fresh=True)
            for p, generation in zip(self._projections, generations, strict=True)
        ]

    def fill(self, events: Sequence[Event]) -> None:
        """Fold a batch, then write it in one transaction."""
        self.fold(events)
        with ledger.transaction(self._connection):
            self._flush()

    def fold(self, events: Sequence[Event]) -> None:
        """Fold a batch in memory."""
        payloads = read(events, self._types, strict=True)
        for projection, rows in zip(self._projections, self._rows, strict=True):
            try:
                fold(projection, rows, events, payloads)
            except Refused as refused:
                raise EverlogError(
                    f"{projection.name} cannot be rebuilt: {refused}: {refused.__cause__}",
                    hint="What served before still serves. Please report this as a bug.",
                ) from refused.__cause__
        self.seq = events[-1].seq
        self.done += len(events)

    def _flush(self) -> None:
        for projection, rows in zip(self._projections, self._rows, strict=True):
            ledger.beat(self._connection, projection.name, self._token)
            rows.flush()

    def lock(self) -> None:
        """Begin the transaction of the swap."""
        self._connection.execute("BEGIN IMMEDIATE")

    def serving(self) -> int:
        """How far any of the generations that serve has come."""
        positions = [ledger.position(self._connection, p.name) for p in self._projections]
        return max(
            (p.seq for p in positions if p and p.incarnation == self._incarnation), default=0
        )

    def swap(self) -> None:
        """Write what is left, let the new generations serve and drop the old, all at once."""
        self._flush()
        for projection, generation in zip(self._projections, self.generations, strict=True):
            old = ledger.position(self._connection, projection.name)
            ledger.release(self._connection, projection.name, self._token)
            ledger.point(
                self._connection,
                projection,
                generation=generation,
                incarnation=self._incarnation,
                seq=self.seq,
            )
            if old is not None:
                ledger.drop(self._connection, projection.prefix(old.generation))
        self._connection.execute("COMMIT")
        self.swapped = True

    def unlock(self) -> None:
        """Take the transaction of the swap back, unless it was committed."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close; drop the new tables unless they serve."""
        if not self.generations:
            return
        try:
            if not self.swapped:
                with ledger.transaction(self._connection):
                    for p, generation in zip(self._projections, self.generations, strict=True):
                        if ledger.release(self._connection, p.name, self._token):
                            ledger.drop(self._connection, p.prefix(generation))
        finally:
            self._connection.close()

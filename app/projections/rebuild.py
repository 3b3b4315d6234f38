"""Rebuild: fill new tables from the log beside those that serve, then swap.

Blue/green: nothing a reader sees changes until one transaction lets the new generation serve;
the old one is dropped after it. The fold runs in memory, outside any transaction; only writing a
batch holds the writers' lock. It may run in another process than the one that keeps the
projections up.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import Callable, Sequence

import msgspec

from app.errors import EverlogError
from app.events.envelope import Event
from app.events.ids import uuid7
from app.events.store import EventStore
from app.projections import ledger
from app.projections.database import Connection, Trouble, Where
from app.projections.folding import Refused, fold
from app.projections.projection import Projection
from app.projections.reading import read
from app.projections.rows import Rows
from app.projections.threads import in_thread

__all__ = ["Progress", "Rebuilt", "rebuild"]

BATCH, FIRST = 5000, 500
"""Most events of a page, and of the first, before anybody knows how large they are."""

PAGE_BYTES = 16 << 20
"""Payloads of a page, about: three pages are in memory at a time, in one form or another."""

GARBAGE = 200_000
"""New objects after which the interpreter looks for garbage in cycles, during a rebuild."""

TURN_SECONDS = 0.001
"""How long a thread may keep the interpreter during a rebuild while others wait for it."""

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
    where: Where,
    projections: Sequence[Projection],
    *,
    progress: Progress | None = None,
) -> Rebuilt:
    """Rebuild projections from the first event on, in one pass, and let the result serve.

    Args:
        store: The log; may be open for reading only.
        where: File of the read models, or URL of the Postgres database they are in.
        projections: What to rebuild.
        progress: Told after each batch.

    Raises:
        EverlogError: Another rebuild is at work, or an event cannot be folded: it is malformed,
            or newer than this code. What served before goes on serving.
        Trouble: The database of the read models is away, or full. So it does then.

    """
    filler = _Filler(where, projections, store.incarnation)
    pages = _Pages(store)
    with _tuned:
        try:
            await in_thread(filler.begin)
            began, total = time.perf_counter(), await store.head()
            while not filler.swapped:
                events = await pages.next(filler.seq)
                if events:
                    pages.begin(events[-1].seq)
                    await in_thread(filler.fold, events)
                    await in_thread(filler.write)
                elif not filler.indexed:
                    await in_thread(filler.index)
                else:
                    await _swap(store, filler)
                if progress is not None:
                    total = max(total, filler.seq)
                    rate = filler.done / max(time.perf_counter() - began, 1e-9)
                    progress(filler.done, total, rate)
        finally:
            pages.close()
            await in_thread(filler.close)
    generations = {p.name: g for p, g in zip(projections, filler.generations, strict=True)}
    return Rebuilt(generations, filler.done, time.perf_counter() - began, filler.seq)


class _Tuned(contextlib.AbstractContextManager[None]):
    """Settings of the interpreter while anything is rebuilt in this process.

    A page of events is many objects, all gone a moment later: looking through them for garbage in
    cycles, where there is none, costs a tenth. And a fold would keep the interpreter for longer at
    a time than it takes to ask for the next page, or to answer a client.
    """

    def __init__(self) -> None:
        self._rebuilds = 0

    def __enter__(self) -> None:
        if self._rebuilds == 0:
            self._before = gc.get_threshold(), sys.getswitchinterval()
            gc.set_threshold(max(self._before[0][0], GARBAGE), *self._before[0][1:])
            sys.setswitchinterval(min(self._before[1], TURN_SECONDS))
        self._rebuilds += 1

    def __exit__(self, *error: object) -> None:
        self._rebuilds -= 1
        if self._rebuilds == 0:
            gc.set_threshold(*self._before[0])
            sys.setswitchinterval(self._before[1])


_tuned = _Tuned()


async def _swap(store: EventStore, filler: _Filler) -> None:
    """Let the new generation serve, with the file locked so that the old one cannot move on.

    What the old one has seen and the new one has not is folded first: readers never go back.
    """
    await in_thread(filler.lock)
    try:
        serving = await in_thread(filler.serving)
        while events := await store.fetch(after=filler.seq, until=serving, limit=BATCH):
            await in_thread(filler.fold, events)
        await in_thread(filler.swap)
    finally:
        await in_thread(filler.unlock)


class _Pages:
    """Pages of the log; the next is fetched while the one before it is folded.

    Where payloads are large (prompts, files that tools read) a page has fewer events.
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._limit = min(BATCH, FIRST)
        self._coming: asyncio.Task[list[Event]] | None = None

    def begin(self, after: int) -> None:
        """Begin to fetch the page past ``after``."""
        self._coming = asyncio.create_task(self._store.fetch(after=after, limit=self._limit))

    async def next(self, after: int) -> list[Event]:
        """Return the page past ``after``, where the one before ended."""
        coming, self._coming = self._coming, None
        events = await (coming or self._store.fetch(after=after, limit=self._limit))
        if events:
            size = sum([len(event.data) for event in events])
            fitting = len(events) * PAGE_BYTES // max(size, 1)
            self._limit = max(1, min(BATCH, 4 * self._limit, fitting))
        return events

    def close(self) -> None:
        """Let go of the page that is coming. Waits for nothing: a scope may cancel every wait."""
        if self._coming is not None:
            self._coming.add_done_callback(_see)
            self._coming.cancel()


def _see(task: asyncio.Task[list[Event]]) -> None:
    """Look at how a task ended, so that the loop does not complain that nobody did."""
    if not task.cancelled():
        task.exception()


class _Filler:
    """The synchronous side: new generations of some projections, being filled."""

    def __init__(self, where: Where, projections: Sequence[Projection], incarnation: str) -> None:
        self._where = where
        self._projections, self._incarnation, self._token = projections, incarnation, uuid7()
        self._types = frozenset().union(*(p.types for p in projections))
        self._rows: list[Rows] = []
        self.generations: list[int] = []
        self.seq = self.done = 0
        self.indexed = self.swapped = False

    def begin(self) -> None:
        """Create the tables of the new generations.

        Raises:
            EverlogError: Another rebuild is at work.

        """
        self._connection: Connection = ledger.open_ledger(self._where, rebuilding=True)
        try:
            with self._connection.transaction():
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

    def write(self) -> None:
        """Write what was folded, in one transaction."""
        with self._connection.transaction():
            self._flush()

    def index(self) -> None:
        """Create what is cheaper to create once the tables are full."""
        for projection, generation in zip(self._projections, self.generations, strict=True):
            ledger.index(self._connection, projection, generation)
        self.indexed = True

    def fold(self, events: Sequence[Event]) -> None:
        """Fold a batch in memory."""
        items = read(events, self._types, strict=True)
        for projection, rows in zip(self._projections, self._rows, strict=True):
            try:
                fold(projection, rows, items)
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
        self._connection.begin()

    def serving(self) -> int:
        """How far any of the generations that serve has come."""
        positions = [ledger.position(self._connection, p.name) for p in self._projections]
        return max(
            (p.seq for p in positions if p and p.incarnation == self._incarnation), default=0
        )

    def swap(self) -> None:
        """Write what is left and let the new generations serve, all at once."""
        self._flush()
        for projection, generation in zip(self._projections, self.generations, strict=True):
            ledger.release(self._connection, projection.name, self._token)
            ledger.point(
                self._connection,
                projection,
                generation=generation,
                incarnation=self._incarnation,
                seq=self.seq,
            )
        self._connection.commit()
        self.swapped = True

    def unlock(self) -> None:
        """Take the transaction of the swap back, unless it was committed."""
        if not self.swapped:
            self._connection.rollback()

    def close(self) -> None:
        """Drop the tables that do not serve, new or old, and close."""
        if not self.generations:
            return
        try:
            # If it is away now, whoever rebuilds or starts next does this.
            with contextlib.suppress(Trouble):
                if not self.swapped:
                    with self._connection.transaction():
                        for projection in self._projections:
                            ledger.release(self._connection, projection.name, self._token)
                ledger.sweep(self._connection, [p.name for p in self._projections])
        finally:
            self._connection.close()

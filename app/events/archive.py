"""Archive: move old events into segments of the object store, and bring them back.

The order makes it safe to be cut short anywhere: the object is noted (`LogStore.upload`), stored,
read back and compared; then one transaction takes the rows out of the table, enters the segment and
appends ``log.archived``. What a crash leaves is an object that nothing refers to; the next run
deletes it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import msgspec

from app.events import catalogue as c
from app.events import segment as segments
from app.events.backend import Row
from app.events.codec import new
from app.events.envelope import Event, thread_of, thread_stream
from app.events.ids import uuid7
from app.events.logstore import LogStore
from app.events.moves import Move, Part, Place
from app.events.objects import Objects
from app.events.segment import Segment
from app.events.store import StoreError

__all__ = [
    "STREAMED",
    "Archived",
    "Restored",
    "archive_streamed",
    "archive_threads",
    "foreign",
    "hot_threads",
    "restore",
    "sweep",
]

STREAMED = ("tokens.generated", "message.delta", "step.delta", "request.embedded")
"""What came piece by piece and stands whole in a later event, or was large and for its sender
alone; nobody misses it but a replay."""

EVENTS = 10_000
"""Most events in a segment. They leave the table in one transaction, for which writers wait."""

BYTES = 16 << 20
"""Most bytes of payloads in a segment, but for one that is larger alone."""

PAGE = 2_000

REMEMBERED = 1_000
"""Streams whose ended messages and steps are remembered during a run."""

#: Events that end what `STREAMED` ones belong to -> the field that names it.
_ENDS = {
    "message.completed": "message",
    "message.removed": "message",
    "step.completed": "step",
    "step.failed": "step",
    "run.completed": "run",
    "run.failed": "run",
    "run.stopped": "run",
    "run.interrupted": "run",
}

Progress = Callable[[int, int], None]


class Archived(msgspec.Struct):
    """What was moved, or would be: events, their payloads' bytes, and the segments' bytes."""

    events: int = 0
    payload: int = 0
    stored: int = 0
    segments: list[str] = msgspec.field(default_factory=list)
    until: int = 0


class Restored(msgspec.Struct):
    """What came back: events, and how many segments they were in."""

    events: int = 0
    segments: int = 0


# ----------------------------------------------------------------------------------- archiving


async def archive_streamed(
    store: LogStore,
    *,
    before: int,
    after: int = 0,
    least: int = 1,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Archived:
    """Archive token batches and deltas of what has ended.

    Args:
        store: The log, open for writing, with objects attached.
        before: Only events from before this time (ns since the epoch).
        after: Only events past this seq; where an earlier run ended (`Archived.until`).
        least: Leave the last ones for another time if they are fewer.
        dry_run: Only say what would be moved.
        progress: Called with the seq that was reached and the head.

    Raises:
        StoreError: The object store or the database failed. Every segment that was finished
            stays archived.

    """
    now = time.time_ns()
    open_requests = {lease.request for lease in await store.leases()}
    ended = _Ended(store)
    done = Archived(until=after)

    async def rows() -> AsyncIterator[Row]:
        head, seq = await store.head(), after
        waiting, since = False, 0
        while seq < head:
            page = await store.hot(after=seq, until=head, types=STREAMED, limit=PAGE)
            times = [row[0].time for row in page if row[0].time <= now]
            for row in page:
                event = row[0]
                # A time that is still to come is of a clock that was wrong.
                since = event.time if event.time <= now else since
                if since >= before:
                    waiting = True  # the next run begins here at the latest
                elif event.request in open_requests or not await ended.has(event):
                    waiting = True
                else:
                    yield row
                if not waiting:
                    done.until = event.seq
            seq = page[-1][0].seq if len(page) == PAGE else head
            if times and times[0] >= before:
                break  # times ascend, but for a clock that was set back
            if progress is not None:
                progress(seq, head)

    if await _archive(store, rows(), done, least=least, dry_run=dry_run):
        done.until = after
    return done


async def archive_threads(
    store: LogStore,
    threads: Iterable[str],
    *,
    before: int,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Archived:
    """Archive whole conversations, each but for its last event.

    One is passed over if it has a newer event than ``before`` (ns), or an open request.

    Args:
        store: The log, open for writing, with objects attached.
        threads: Ids of conversations.
        before: Only ones that ended before this time (ns since the epoch).
        dry_run: Only say what would be moved.
        progress: Called with conversations done and conversations in all.

    Raises:
        StoreError: See `archive_streamed`.

    """
    ids = list(threads)
    done = Archived()

    async def rows() -> AsyncIterator[Row]:
        for number, thread in enumerate(ids, 1):
            async for row in _thread_rows(store, thread_stream(thread), before):
                yield row
            if progress is not None:
                progress(number, len(ids))

    await _archive(store, rows(), done, least=1, dry_run=dry_run)
    return done


async def hot_threads(store: LogStore) -> list[str]:
    """Ids of the conversations that are not archived as a whole, oldest first."""
    found: list[str] = []
    after, head = 0, await store.head()
    while True:
        page = await store.hot(after=after, until=head, types=("thread.created",), limit=PAGE)
        names = (thread_of(event.stream) for event, _, _ in page)
        found += [thread for thread in names if thread is not None]
        if len(page) < PAGE:
            return found
        after = page[-1][0].seq


async def _thread_rows(store: LogStore, stream: str, before: int) -> AsyncIterator[Row]:
    version = await store.stream_version(stream)
    if version < 2 or await store.leases(stream=stream):
        return
    if (await store.fetch(stream=stream, after=version - 1, limit=1))[0].time >= before:
        return
    after, head = 0, await store.head()
    while True:
        page = await store.hot(after=after, until=version - 1, stream=stream, limit=PAGE)
        for row in page:
            if row[0].seq < head:
                yield row
        if len(page) < PAGE:
            return
        after = page[-1][0].version


class _Ended:
    """Knows which messages, steps and runs have ended."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._streams: OrderedDict[str, set[str]] = OrderedDict()

    async def has(self, event: Event) -> bool:
        """Whether what an event of `STREAMED` belongs to has ended."""
        if event.type in ("tokens.generated", "request.embedded"):
            return True  # the queue knows better
        ended = self._streams.get(event.stream)
        if ended is None:
            ended = self._streams[event.stream] = await self._read(event.stream)
            if len(self._streams) > REMEMBERED:
                self._streams.popitem(last=False)
        names = msgspec.json.decode(event.data)
        return not ended.isdisjoint({event.run, names.get("message"), names.get("step")})

    async def _read(self, stream: str) -> set[str]:
        return {
            msgspec.json.decode(event.data)[_ENDS[event.type]]
            async for event in self._store.read(stream=stream, types=tuple(_ENDS))
        }


async def _archive(
    store: LogStore, rows: AsyncIterator[Row], done: Archived, *, least: int, dry_run: bool
) -> bool:
    """Move rows, segment by segment; returns whether some were left because they are few."""
    if dry_run:
        async for event, _, _ in rows:
            done.events += 1
            done.payload += len(event.data)
        return False
    async with store.archiving():
        await sweep(store)
        async for portion in _portions(rows):
            if len(portion) < least:
                return True  # only the last one is small
            done.stored += await _move_out(store, portion, done)
    return False


async def _portions(rows: AsyncIterator[Row]) -> AsyncIterator[list[Row]]:
    portion: list[Row] = []
    size = 0
    async for row in rows:
        if portion and (len(portion) == EVENTS or size + len(row[0].data) > BYTES):
            yield portion
            portion, size = [], 0
        portion.append(row)
        size += len(row[0].data)
    if portion:
        yield portion


async def _move_out(store: LogStore, rows: Sequence[Row], done: Archived) -> int:
    """Archive rows as one segment; returns its bytes."""
    segment = await store_segment(store, rows)
    record = c.LogArchived(
        first=segment.first,
        last=segment.last,
        object=segment.object,
        sha256=segment.sha256,
        events=segment.events,
        bytes=segment.bytes,
    )
    move = Move(
        log=store.incarnation,
        record=new(record),
        remove=[Place(e.seq, e.stream, e.version, opening) for e, opening, _ in rows],
        add=segment,
    )
    await _commit(store, move)
    done.events += segment.events
    done.payload += sum(len(event.data) for event, _, _ in rows)
    done.segments.append(segment.object)
    return segment.bytes


async def store_segment(store: LogStore, rows: Sequence[Row]) -> Segment:
    """Store rows as a segment and read it back; nothing refers to it yet.

    Raises:
        StoreError: The object store failed, or does not give back what it was given.

    """
    objects = _objects(store)
    data = await asyncio.to_thread(segments.encode, rows, store.incarnation)
    key = f"{_own(store)}{rows[0][0].seq:012}-{uuid7()}.zst"
    segment = segments.summary(data, key)
    await store.upload(key, "noted")
    await objects.put(key, data, sha256=segment.sha256)
    stored = await objects.read(key, sha256=segment.sha256)
    again = await asyncio.to_thread(segments.decode, stored)
    if again != sorted(rows, key=lambda row: row[0].seq):
        raise StoreError(f"object {key} does not hold the events it was made of")
    return segment


# ----------------------------------------------------------------------------------- restoring


async def restore(
    store: LogStore,
    *,
    stream: str | None = None,
    seqs: Iterable[int] | None = None,
    progress: Progress | None = None,
) -> Restored:
    """Bring archived events back into the log's table.

    Args:
        store: The log, open for writing, with objects attached.
        stream: Only those of a stream.
        seqs: Only these. Without either, all.
        progress: Called with segments done and segments in all.

    Raises:
        StoreError: A segment is missing or damaged, or the database failed. Every segment that was
            finished stays restored.

    """
    wanted = None if seqs is None else set(seqs)
    done = Restored()
    async with store.archiving():
        await sweep(store)
        parts = await store.segments(stream=stream)
        for number, part in enumerate(parts, 1):
            count = await _move_in(store, part, stream, wanted)
            done.events += count
            done.segments += count > 0
            if progress is not None:
                progress(number, len(parts))
        if done.events:
            await sweep(store)
    return done


async def _move_in(store: LogStore, part: Part, stream: str | None, wanted: set[int] | None) -> int:
    """Restore what is wanted of a segment; the rest of it becomes a segment of its own."""
    old = part.segment
    if wanted is not None and not any(old.first <= seq <= old.last for seq in wanted):
        return 0
    back: list[Row] = []
    rest: list[Row] = []
    data = await _objects(store).read(old.object, sha256=old.sha256)
    for row in await asyncio.to_thread(segments.decode, data):
        asked = stream in (None, row[0].stream) and (wanted is None or row[0].seq in wanted)
        (back if asked else rest).append(row)
    if not back:
        return 0
    kept = await store_segment(store, rest) if rest else None
    record = c.LogRestored(
        first=back[0][0].seq,
        last=back[-1][0].seq,
        object=old.object,
        events=len(back),
        rest=kept.object if kept else None,
        sha256=kept.sha256 if kept else None,
    )
    move = Move(log=store.incarnation, record=new(record), insert=back, add=kept, drop=old)
    await _commit(store, move)
    return len(back)


async def sweep(store: LogStore) -> list[str]:
    """Delete the objects that nothing refers to, left over from runs that were cut short.

    Objects of another life of the log are left alone, for a backup shares its segments with the
    log it was made of; they are remembered for as long as they are there (`foreign`).
    """
    objects, deleted = _objects(store), []
    for key in await store.uploads():
        if key.startswith(_own(store)):
            try:
                await store.upload(key, "doomed")
            except ValueError:
                continue  # its move was committed meanwhile
            await objects.delete(key)
            deleted.append(key)
        elif await objects.stat(key) is not None:
            continue
        await store.upload(key, "gone")
    return deleted


async def foreign(store: LogStore) -> list[str]:
    """Objects that this log no longer needs, and that copies of an earlier life of it may need."""
    return [key for key in await store.uploads() if not key.startswith(_own(store))]


async def _commit(store: LogStore, move: Move) -> None:
    try:
        await store.move(move)
    except ValueError as error:
        if move.add is not None:  # who swept meanwhile may have forgotten it
            await _objects(store).delete(move.add.object)
            await store.upload(move.add.object, "gone")
        raise StoreError(f"{error}; nothing was moved", hint="run it again") from error


def _objects(store: LogStore) -> Objects:
    if store.objects is None:
        raise StoreError("this log has no object store", hint="set objects.url")
    return store.objects


def _own(store: LogStore) -> str:
    """What the keys of this log's segments begin with."""
    return f"archive/{store.incarnation}/"

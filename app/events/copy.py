"""Copy a log into another store: the same log in another place.

Positions, salts and leaves stay, so the seals still hold; so does the incarnation, so clients go on
where they were, and what they send again still takes effect once. The queue of requests follows
from the events; leases do not move. A copy that was interrupted is a prefix of its source and goes
on from there; payloads that were erased in the source since then are erased in the copy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

import msgspec

from app.errors import InputError
from app.events.backend import Row
from app.events.catalogue import LogRedacted
from app.events.codec import PayloadError, decode
from app.events.envelope import Event
from app.events.leaf import DIGEST, leaves
from app.events.logstore import LogStore
from app.events.ops import Erasure
from app.events.seal import Head, head
from app.events.store import StoreError
from app.events.verify import Report, verify

__all__ = ["Copied", "copy"]

log = logging.getLogger(__name__)

PAGE = 8_192
"""Most events in one transaction of the target."""

PAGE_BYTES = 16 << 20
"""About how many bytes of payload one transaction may have."""

ATTEMPTS = 3
"""How often a page is written before the copy gives up."""

Progress = Callable[[int, int], None]


class Copied(msgspec.Struct, frozen=True):
    """What a copy did: ``events`` now, after the ``kept`` that an earlier run had copied."""

    events: int
    kept: int
    seconds: float
    head: Head
    report: Report


class _Page(msgspec.Struct, frozen=True):
    events: list[Event]
    salts: list[bytes]
    leaves: list[bytes]

    @property
    def last(self) -> int:
        return self.events[-1].seq


async def copy(
    source: LogStore,
    target: LogStore,
    progress: Progress | None = None,
    *,
    checking: Progress | None = None,
) -> Copied:
    """Copy all events, up to the source's head when the last of them is written.

    Args:
        source: The log; it may grow meanwhile.
        target: An empty log, or one that an earlier copy of this source left half full.
        progress: Called with events in the target and events in the source.
        checking: The same while the target is verified.

    Returns:
        What was done; the target's head equals the source's there.

    Raises:
        InputError: The target holds something else (field ``TARGET``); nothing was written.
        StoreError: An event of the source is damaged (the message names it), the target cannot
            be written, or is not whole afterwards. What was copied before stays.

    """
    kept = done = await _begin(source, target)
    started, erased = time.monotonic(), 0
    while (end := await source.head()) > done:
        async with aclosing(_read(source, done, end)) as pages:
            async for page in pages:
                erasures = await _erased(source, target, page)
                await _write(target, page, erasures)
                done, erased = page.last, erased + len(erasures)
                if progress is not None:
                    progress(done, end)
    await _remember(source, target, done)
    if erased:
        await target.scrub()
    seconds = time.monotonic() - started
    proof = await head(source, at=done)
    report = await verify(target, checking, expected=proof)
    if not report.ok:
        raise StoreError(
            f"the copy is not whole: {report.problems[0].message}",
            hint="verify both logs, then copy into an empty database",
        )
    return Copied(done - kept, kept, seconds, proof, report)


async def _begin(source: LogStore, target: LogStore) -> int:
    """Refuse a target that is not a prefix of the source; the position to go on after."""
    have, there = await target.head(), await source.head()
    if not have:
        await target.adopt(source.incarnation)
        return 0
    if target.incarnation != source.incarnation:
        raise InputError(
            f"it holds another log (incarnation {target.incarnation}, "
            f"the source has {source.incarnation})",
            field="TARGET",
            hint="copy into a new database",
        )
    both = min(have, there)
    if (await head(source, at=both)).root != (await head(target, at=both)).root:
        raise InputError(
            f"it differs from the source at event {await _difference(source, target, both)}",
            field="TARGET",
            hint="it is no copy of this log, or was written meanwhile: copy into a new database",
        )
    if have > there:
        raise InputError(
            f"it has {have} events, the source only {there}",
            field="TARGET",
            hint="are SOURCE and TARGET the right way round?",
        )
    return have


async def _difference(source: LogStore, target: LogStore, until: int) -> int:
    """Seq of the first event whose leaf differs."""
    for after in range(0, until, PAGE):
        end = min(after + PAGE, until)
        left = await source.leaves(after=after, until=end)
        right = await target.leaves(after=after, until=end)
        for seq in range(after + 1, end + 1):
            at = seq - after - 1
            if left[at : at + 1] != right[at : at + 1]:
                return seq
    return until


async def _read(source: LogStore, after: int, end: int) -> AsyncGenerator[_Page, None]:
    """Yield the events of ``after < seq <= end``; reads a page while the last is written."""
    limit = PAGE // 8  # until it is known how large they are
    reading = asyncio.create_task(_page(source, after, min(limit, end - after)))
    try:
        while True:
            page = await reading
            if page.last >= end:
                break
            mean = sum(len(event.data) for event in page.events) // len(page.events) + 1
            limit = max(1, min(PAGE, PAGE_BYTES // mean))
            reading = asyncio.create_task(_page(source, page.last, min(limit, end - page.last)))
            yield page
        yield page
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError, StoreError):
            await reading


async def _page(source: LogStore, after: int, limit: int) -> _Page:
    """Read events and check them against their leaves, so that no damage is copied.

    Raises:
        StoreError: One is missing, unreadable or changed.

    """
    rows = await source.rows(after=after, limit=limit)
    if not rows:
        raise _damaged(after + 1, "is missing")
    return await asyncio.to_thread(_checked, rows, after)


def _checked(rows: list[Row | StoreError], after: int) -> _Page:
    events: list[Event] = []
    salts: list[bytes] = []
    stored: list[bytes] = []
    for seq, row in enumerate(rows, after + 1):
        if isinstance(row, StoreError):
            raise _damaged(seq, f"cannot be read: {row.message}")
        event, salt, value = row
        if event.seq != seq:
            raise _damaged(seq, "is missing")
        events.append(event)
        salts.append(salt)
        stored.append(value)
    try:
        computed = leaves(events, salts)
    except (TypeError, ValueError, OverflowError):  # damage can change a column's very type
        computed = [_leaf(event, salt) for event, salt in zip(events, salts, strict=True)]
    if computed != stored:
        for event, right, value in zip(events, computed, stored, strict=True):
            if right != value:
                raise _damaged(event.seq, "was changed after it was written")
    return _Page(events, salts, stored)


def _leaf(event: Event, salt: bytes) -> bytes:
    try:
        return leaves([event], [salt])[0]
    except (TypeError, ValueError, OverflowError):
        return b""


def _damaged(seq: int, what: str) -> StoreError:
    return StoreError(f"the source is damaged: event {seq} {what}", hint="see: everlog verify")


async def _erased(source: LogStore, target: LogStore, page: _Page) -> list[Erasure]:
    """Payloads that this page records as erased, and that the target still has from before."""
    before, found = page.events[0].seq, []
    for event in page.events:
        if event.type != "log.redacted":
            continue
        try:
            record = decode(event)
        except PayloadError as error:
            raise _damaged(event.seq, str(error)) from error
        assert isinstance(record, LogRedacted)
        for seq in record.seqs:
            if seq < before:
                [old] = await target.rows(after=seq - 1, limit=1)
                if isinstance(old, StoreError) or len(old[1]) != DIGEST:
                    found.append(await _erasure(source, seq))
    return found


async def _erasure(source: LogStore, seq: int) -> Erasure:
    page = await _page(source, seq - 1, 1)
    [event], [opening] = page.events, page.salts
    return Erasure(seq, event.stream, event.version, event.data, opening)


async def _remember(source: LogStore, target: LogStore, done: int) -> None:
    """Copy what commands took effect, so that one sent again changes nothing."""
    after = ""
    while commands := await source.commands(after=after):
        known = {id: (seq, version, at) for id, seq, version, at in commands if seq <= done}
        await target.load([], [], commands=known)
        after = commands[-1][0]


async def _write(target: LogStore, page: _Page, erased: list[Erasure]) -> None:
    """Write a page; again if it was not written, for the database may have been away."""
    first = page.events[0].seq
    for attempt in range(1, ATTEMPTS + 1):
        try:
            await target.load(page.events, page.salts, erased=erased)
        except ValueError as error:
            raise StoreError(f"the target cannot hold the source's events: {error}") from error
        except StoreError as error:
            have = await target.head()  # waits for the database
            if have >= first:
                await _refuse_others(target, page, have)
            elif attempt == ATTEMPTS:
                raise
            else:
                log.warning("writing again from event %d: %s", first, error)
                continue
        return


async def _refuse_others(target: LogStore, page: _Page, have: int) -> None:
    """Whether what is there instead is this page: committed, and only the answer was lost."""
    first = page.events[0].seq
    if have == page.last and await target.leaves(after=first - 1, until=have) == page.leaves:
        return
    raise StoreError(
        f"the target was written by somebody else: it has {have} events",
        hint="stop the servers of the target, and copy into a new database",
    )

"""Recompute the log and name what is wrong with it.

Three layers: every row carries its own leaf hash (finds the very event that was changed), seals
prove the leaves (finds ranges whose leaves were recomputed), and a head saved elsewhere proves the
seals and the end of the log. What is left of a redacted event is proven by the record of it
(``log.redacted``), an event like any other.

Pages of sound rows are checked in bulk; one with anything odd in it is gone through row by row.
An event that is erased while this goes on is looked up in the records as they are then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from hashlib import sha256

import msgspec

from app.events.backend import Row
from app.events.catalogue import LogRedacted
from app.events.codec import PayloadError, decode
from app.events.envelope import Event
from app.events.leaf import DIGEST, SALT, leaf, leaves
from app.events.logstore import LogStore
from app.events.merkle import GENESIS, Merkle, chain
from app.events.moves import Part
from app.events.seal import SEAL_STREAM, Head, head, read_seal
from app.events.segment import Segment
from app.events.store import StoreError

__all__ = ["OTHER_LOG", "Problem", "Report", "verify"]

OTHER_LOG = "incarnation"
"""Kind of the problem that a saved head is of another log, or of this one before a restore."""

PAGE = 4_096
MAX_PROBLEMS = 100

LOOKS = 20
"""How often rows are read again because something was redacted meanwhile."""


class Problem(msgspec.Struct, frozen=True):
    """Something wrong at ``seq`` (None: with the log as a whole).

    ``kind`` is ``changed``, ``missing``, ``unreadable``, ``redaction``, ``seal``, ``head``,
    ``incarnation`` or ``storage``.
    """

    seq: int | None
    kind: str
    message: str


class Report(msgspec.Struct):
    """Result of `verify`. Only the first hundred problems are kept; ``found`` counts all."""

    events: int = 0
    seals: int = 0
    sealed: int = 0
    redacted: int = 0
    head: Head | None = None
    found: int = 0
    problems: list[Problem] = msgspec.field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.found == 0

    def add(self, seq: int | None, kind: str, message: str) -> None:
        """Note a problem."""
        self.found += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(seq, kind, message))


class _Range(msgspec.Struct):
    """A range of seqs whose tree is being computed. ``seq`` is the seal's, 0 for the head's."""

    seq: int
    first: int
    last: int
    merkle: str = ""


async def verify(
    store: LogStore,
    progress: Callable[[int, int], None] | None = None,
    *,
    expected: Head | None = None,
) -> Report:
    """Check every event, every seal, and a saved head.

    Reads the log once, in pages; memory grows only with the number of seals and redactions.

    Args:
        store: The log, also one opened for reading only.
        progress: Called with events done and events in all.
        expected: A head written down earlier; without it, events cut off the end go unnoticed.

    Returns:
        What was found; `Report.ok` is False if anything is wrong.

    """
    report = Report()
    total = await store.head()
    ranges, saved = await _plan(store, total, expected, report)
    checks = [_Check(span) for span in ranges]
    if saved is not None:
        checks.append(saved)
    records = _Records(store, report)
    await records.refresh()
    await _walk(
        store, total, _Walker(checks, records, report), await _parts(store, report), progress
    )
    for check in checks:
        check.finish(report)
    try:
        for complaint in await store.check():
            report.add(None, "storage", complaint)
    except StoreError as error:
        report.add(None, "storage", error.message)
    if report.ok:
        report.head = await head(store)
    return report


class _Check:
    """Compares the tree over a range with what a seal says."""

    def __init__(self, span: _Range) -> None:
        self.first, self.last, self.seal = span.first, span.last, span.seq
        self.tree = Merkle()
        self._merkle = span.merkle

    def finish(self, report: Report) -> None:
        if self.tree.root().hex() != self._merkle:
            report.add(
                self.seal,
                "seal",
                f"the seal at seq {self.seal} does not match events {self.first}..{self.last}",
            )


class _HeadCheck(_Check):
    """Compares the log up to a saved head with its root."""

    def __init__(self, span: _Range, previous: bytes, expected: Head) -> None:
        super().__init__(span)
        self._previous, self._expected = previous, expected

    def finish(self, report: Report) -> None:
        root = self._previous
        if self.first <= self.last:
            root = chain(root, self.first, self.last, self.tree.root())
        if root.hex() != self._expected.root:
            seq = self._expected.seq
            report.add(seq, "head", f"the log up to seq {seq} is not the one of the saved head")


async def _plan(
    store: LogStore, total: int, expected: Head | None, report: Report
) -> tuple[list[_Range], _HeadCheck | None]:
    """Follow the chain of seals; say which ranges have to be recomputed."""
    ranges: list[_Range] = []
    root, last = GENESIS, 0
    root_then, last_then = root, last  # as of the saved head
    for event in await _seals(store, report):
        try:
            seal = read_seal(event)
            claimed = bytes.fromhex(seal.root)
            right = chain(root, seal.first, seal.last, bytes.fromhex(seal.merkle))
        except (PayloadError, ValueError, OverflowError):
            report.add(event.seq, "seal", f"the seal at seq {event.seq} is unreadable")
            continue
        broken = seal.previous != root.hex() or seal.first != last + 1 or seal.last >= event.seq
        if broken or claimed != right:
            report.add(event.seq, "seal", f"the seal at seq {event.seq} breaks the chain")
        ranges.append(_Range(event.seq, seal.first, seal.last, seal.merkle))
        root, last = claimed, seal.last
        if expected is not None and event.seq <= expected.seq:
            root_then, last_then = root, last
        report.seals += 1
    report.sealed = last
    return ranges, _expect(store, total, expected, report, (root_then, last_then))


async def _seals(store: LogStore, report: Report) -> list[Event]:
    found: list[Event] = []
    try:
        async for event in store.read(stream=SEAL_STREAM, types=("log.sealed",)):
            found.append(event)  # noqa: PERF401 - keep what was read before an error
    except StoreError as error:
        report.add(None, "storage", f"seals cannot be read: {error.message}")
    return found


def _expect(
    store: LogStore,
    total: int,
    expected: Head | None,
    report: Report,
    sealed: tuple[bytes, int],
) -> _HeadCheck | None:
    if expected is None:
        return None
    if expected.incarnation and expected.incarnation != store.incarnation:
        report.add(None, OTHER_LOG, "the saved head is of another log (its incarnation differs)")
    if expected.seq > total:
        report.add(
            total + 1,
            "missing",
            f"events {total + 1}..{expected.seq} are missing: the saved head has them",
        )
        return None
    root, last = sealed
    return _HeadCheck(_Range(0, last + 1, expected.seq), root, expected)


class _Records:
    """Redacted events: SHA-256 of what the latest record says is left of each."""

    def __init__(self, store: LogStore, report: Report) -> None:
        self._store, self._report = store, report
        self._version = 0
        self._seqs: list[int] = []
        self.left: dict[int, bytes] = {}

    async def refresh(self) -> bool:
        """Read the records that are new; whether the log has said anything of itself since."""
        store, after = self._store, self._version
        self._version = await store.stream_version(SEAL_STREAM)
        if self._version == after:
            return False
        try:
            async for event in store.read(
                stream=SEAL_STREAM, after=after, until=self._version, types=("log.redacted",)
            ):
                self._take(event)
        except StoreError as error:
            self._report.add(None, "storage", f"redactions cannot be read: {error.message}")
        self._seqs = sorted(self.left)
        return True

    def _take(self, event: Event) -> None:
        try:
            record = decode(event)
            assert isinstance(record, LogRedacted)
            self.left |= zip(record.seqs, map(bytes.fromhex, record.left), strict=True)
        except (PayloadError, ValueError, AssertionError):
            message = f"the record at seq {event.seq} is unreadable"
            self._report.add(event.seq, "redaction", message)

    def any(self, after: int, until: int) -> bool:
        """Whether there is one of ``after < seq <= until``."""
        place = bisect_right(self._seqs, after)
        return place < len(self._seqs) and self._seqs[place] <= until


async def _walk(
    store: LogStore,
    total: int,
    walker: _Walker,
    parts: list[Part],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Read all rows in order, and look at each segment once its first row was read."""
    parts.sort(key=lambda part: part.segment.first, reverse=True)
    while walker.seq < total:
        after, until = walker.seq, min(walker.seq + PAGE, total)
        quick = None
        if not walker.records.any(after, until):
            quick = await store.sound(after=after, until=until)
        if quick is not None:
            walker.take_sound(quick)
        elif not await _look(store, walker, until):
            walker.report.add(after + 1, "missing", f"events {after + 1}..{total} are missing")
            return
        while parts and (parts[-1].segment.first <= walker.seq or walker.seq >= total):
            await _check_segment(store, parts.pop().segment, walker.report)
        if progress is not None:
            progress(min(walker.seq, total), total)


async def _parts(store: LogStore, report: Report) -> list[Part]:
    try:
        return await store.segments()
    except StoreError as error:
        report.add(None, "storage", error.message)
        return []


async def _check_segment(store: LogStore, segment: Segment, report: Report) -> None:
    """Compare what the catalog says of a segment with its object: by it events are found."""
    try:
        right = await store.described(segment)
        spans = await store.spans(segment.object)
    except StoreError:
        return  # its rows were reported; or it has become another meanwhile
    if spans is None:
        return
    named = {name: (span.first, span.last) for name, span in right.streams.items()}
    listed = msgspec.structs.replace(segment, streams=right.streams)
    if spans != named or listed != right:
        message = f"the catalog of archived events is wrong about segment {segment.object}"
        report.add(None, "storage", message)


async def _look(store: LogStore, walker: _Walker, until: int) -> bool:
    """Look at rows as they are; False if there are none."""
    for _ in range(LOOKS):  # rows must be younger than the records they are compared with
        rows = await store.rows(after=walker.seq, limit=until - walker.seq)
        erased = any(isinstance(row, tuple) and len(row[1]) == DIGEST for row in rows)
        if not erased or not await walker.records.refresh():
            break
    if rows and not walker.take_page(rows):
        for row in rows:
            walker.take_row(row)
    return bool(rows)


class _Walker:
    """Checks rows in order, and feeds their leaves to the trees that need them."""

    def __init__(self, checks: list[_Check], records: _Records, report: Report) -> None:
        self.seq = 0
        self.report = report
        self.records = records
        self._waiting = sorted(checks, key=lambda check: check.first, reverse=True)
        self._active: list[_Check] = []

    def take_sound(self, values: list[bytes]) -> None:
        """Take rows that are known to be sound, by their leaves."""
        self.report.events += len(values)
        self._advance(values)

    def take_page(self, rows: Sequence[Row | StoreError]) -> bool:
        """Take a whole page if every row is sound; else nothing, and return False."""
        events, openings, stored = [], [], []
        for row in rows:
            if isinstance(row, StoreError) or len(row[1]) not in (SALT, DIGEST):
                return False
            events.append(row[0])
            openings.append(row[1])
            stored.append(row[2])
        if events[0].seq != self.seq + 1 or events[-1].seq != self.seq + len(rows):
            return False
        try:
            if leaves(events, openings) != stored:
                return False
        except (TypeError, ValueError, OverflowError):
            return False
        for event, opening in zip(events, openings, strict=True):
            if len(opening) == DIGEST or event.seq in self.records.left:
                self._check_redaction(event, opening)
        self.take_sound(stored)
        return True

    def take_row(self, row: Row | StoreError) -> None:
        """Take one row, and say what is wrong with it."""
        report, due = self.report, self.seq + 1
        if isinstance(row, StoreError):
            report.add(due, "unreadable", f"event {due} cannot be read: {row.message}")
            self._advance([b""])
            return
        event, opening, stored = row
        if event.seq != due:
            gap = f"{due}..{event.seq - 1}" if event.seq > due + 1 else f"{due}"
            report.add(due, "missing", f"event {gap} is missing")
            self.seq = event.seq - 1
        report.events += 1
        value = _leaf(event, opening)
        if value != stored:
            report.add(event.seq, "changed", f"event {event.seq} was changed after it was written")
        elif len(opening) == DIGEST or event.seq in self.records.left:
            self._check_redaction(event, opening)
        self._advance([value or b""])

    def _advance(self, values: list[bytes]) -> None:
        """Move on by rows with these leaves."""
        first, self.seq = self.seq + 1, self.seq + len(values)
        while self._waiting and self._waiting[-1].first <= self.seq:
            self._active.append(self._waiting.pop())
        for check in self._active:
            check.tree.extend(values[max(check.first - first, 0) : check.last - first + 1])
        self._active = [check for check in self._active if check.last > self.seq]

    def _check_redaction(self, event: Event, opening: bytes) -> None:
        """Compare an erased event, or one that should be, with the record of it."""
        left, seq = self.records.left.get(event.seq), event.seq
        if len(opening) != DIGEST:
            message = f"event {seq} was redacted by the record of it, yet its payload is there"
        elif left is None:
            message = f"event {seq} was erased without a record"
        elif sha256(event.data).digest() != left:
            message = f"event {seq} was changed after it was redacted"
        else:
            self.report.redacted += 1
            return
        self.report.add(seq, "redaction", message)


def _leaf(event: Event, opening: bytes) -> bytes | None:
    if len(opening) not in (SALT, DIGEST):  # bytes were moved between salt and payload
        return None
    try:
        return leaf(msgspec.structs.astuple(event)[:-1], opening, event.data)
    except (TypeError, ValueError, OverflowError):  # damage can change a column's very type
        return None

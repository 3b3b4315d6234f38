"""Recompute the log and name what is wrong with it.

Three layers: every row carries its own leaf hash (finds the very event that was changed), seals
prove the leaves (finds ranges whose leaves were recomputed), and a head saved elsewhere proves the
seals and the end of the log.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from app.events.backend import Row
from app.events.codec import PayloadError
from app.events.envelope import Event
from app.events.leaf import leaf
from app.events.logstore import LogStore
from app.events.merkle import GENESIS, Merkle, chain
from app.events.seal import SEAL_STREAM, Head, head, read_seal
from app.events.store import StoreError

__all__ = ["Problem", "Report", "verify"]

PAGE = 4_096
MAX_PROBLEMS = 100


class Problem(msgspec.Struct, frozen=True):
    """Something wrong at ``seq`` (None: with the log as a whole).

    ``kind`` is ``changed``, ``missing``, ``unreadable``, ``seal``, ``head`` or ``storage``.
    """

    seq: int | None
    kind: str
    message: str


class Report(msgspec.Struct):
    """Result of `verify`. Only the first hundred problems are kept; ``found`` counts all."""

    events: int = 0
    seals: int = 0
    sealed: int = 0
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

    Reads the log once, in pages; memory grows only with the number of seals.

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
    await _walk(store, total, checks, report, progress)
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
        report.add(None, "head", "the saved head is of another log (its incarnation differs)")
    if expected.seq > total:
        report.add(
            total + 1,
            "missing",
            f"events {total + 1}..{expected.seq} are missing: the saved head has them",
        )
        return None
    root, last = sealed
    return _HeadCheck(_Range(0, last + 1, expected.seq), root, expected)


async def _walk(
    store: LogStore,
    total: int,
    checks: list[_Check],
    report: Report,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Read all rows in order and feed their leaves to the trees that need them."""
    seq = 0
    waiting = sorted(checks, key=lambda check: check.first, reverse=True)
    active: list[_Check] = []
    while seq < total:
        rows = await store.rows(after=seq, limit=min(PAGE, total - seq))
        if not rows:
            report.add(seq + 1, "missing", f"events {seq + 1}..{total} are missing")
            return
        for row in rows:
            seq, value = _check_row(row, seq, report)
            while waiting and waiting[-1].first <= seq:
                active.append(waiting.pop())
            done = False
            for check in active:
                if seq <= check.last:
                    check.tree.add(value)
                done = done or seq >= check.last
            if done:
                active = [check for check in active if seq < check.last]
        if progress is not None:
            progress(min(seq, total), total)


def _check_row(row: Row | StoreError, before: int, report: Report) -> tuple[int, bytes]:
    """Check one row against its leaf; returns its seq and its leaf as recomputed."""
    if isinstance(row, StoreError):
        report.add(before + 1, "unreadable", f"event {before + 1} cannot be read: {row.message}")
        return before + 1, b""
    event, salt, stored = row
    if event.seq != before + 1:
        gap = f"{before + 1}..{event.seq - 1}" if event.seq > before + 2 else f"{before + 1}"
        report.add(before + 1, "missing", f"event {gap} is missing")
    report.events += 1
    value = _leaf(event, salt)
    if value != stored:
        report.add(event.seq, "changed", f"event {event.seq} was changed after it was written")
    return event.seq, value or b""


def _leaf(event: Event, salt: bytes) -> bytes | None:
    try:
        return leaf(msgspec.structs.astuple(event)[:-1], salt, event.data)
    except (TypeError, ValueError, OverflowError):  # damage can change a column's very type
        return None

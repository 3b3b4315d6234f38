"""The request queue: the one projection written inside the appending transaction. Pure.

A row says who holds a request, under which epoch, until when. `judge` decides whether an append
may be written; `fold` is the same projection computed from stored events alone.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from app.events.envelope import Event, NewEvent
from app.events.lifecycle import FENCED, TERMINAL, TRANSITIONS, advance
from app.events.ops import Claim
from app.events.store import Append, Closed, Fence, Fenced, Illegal, Lease

__all__ = ["HELD", "Request", "fold", "judge", "queued_fields", "to_lease"]

#: States in which a worker holds the request.
HELD = frozenset({"claimed", "running", "preempted"})


class Request(msgspec.Struct, frozen=True, gc=False):
    """A row of the request table. ``queued`` is the seq of its ``request.queued`` event."""

    id: str
    stream: str
    state: str
    epoch: int
    worker: str | None
    until: int | None
    priority: int
    queued: int
    model: str | None
    deadline: int | None
    run: str | None
    tenant: str = ""


class _Queued(msgspec.Struct, frozen=True):
    request: str
    priority: int = 0
    model: str | None = None
    deadline: int | None = None
    tenant: str | None = None


class _Claimed(msgspec.Struct, frozen=True):
    epoch: int
    worker: str


queued_fields: Callable[[bytes], _Queued] = msgspec.json.Decoder(_Queued).decode
_claimed_fields: Callable[[bytes], _Claimed] = msgspec.json.Decoder(_Claimed).decode

Refusal = Fenced | Closed | Illegal
Rows = Callable[[str], Request | None]


def to_lease(row: Request) -> Lease:
    """Public view of a row."""
    return Lease(row.id, row.stream, row.state, row.epoch, row.worker, row.until)


def judge(append: Append, first_seq: int, rows: Rows) -> Refusal | dict[str, Request]:
    """Decide whether the queue lets an append through.

    Args:
        append: What is to be written.
        first_seq: The seq its first event would get.
        rows: Looks a request up.

    Returns:
        Why not; or the rows that change (empty for most appends).

    """
    fence = append.fence
    if fence is not None:
        refusal = _check_fence(fence, rows(fence.request), append.events[0].type)
        if refusal is not None:
            return refusal
    changed: dict[str, Request] = {}
    for seq, event in enumerate(append.events, first_seq):
        if event.type not in TRANSITIONS:
            continue
        assert event.request is not None  # checked before it was accepted
        row = changed.get(event.request) or rows(event.request)
        after = _step(append, seq, event, row)
        if not isinstance(after, Request):
            return after
        if after is not row:
            changed[event.request] = after
    return changed


def _check_fence(fence: Fence, row: Request | None, event_type: str) -> Refusal | None:
    if row is None:
        return Illegal(event_type, None)
    if row.state in TERMINAL:
        return Closed(row.state)
    if row.epoch != fence.epoch or row.worker is None:
        return Fenced(row.epoch)
    return None


def _step(append: Append, seq: int, event: NewEvent, row: Request | None) -> Refusal | Request:
    """The row after one event, or why it may not be written."""
    state = row.state if row is not None else None
    if state in TERMINAL:
        assert state is not None
        return Closed(state)
    after = advance(state, event.type)
    fence = append.fence
    if row is None:
        if after is None:
            return Illegal(event.type, None)
        return _queued_row(append.stream, seq, event)
    if event.type in FENCED and (fence is None or fence.request != row.id):
        return Fenced(row.epoch)
    if after is None or row.stream != append.stream or event.type == "request.claimed":
        return Illegal(event.type, state)  # claims come from claim() alone: they raise the epoch
    return _moved(row, after)


def _queued_row(stream: str, seq: int, event: NewEvent | Event) -> Request:
    fields = queued_fields(event.data)
    assert event.request is not None
    return Request(
        id=event.request,
        stream=stream,
        state="queued",
        epoch=0,
        worker=None,
        until=None,
        priority=fields.priority,
        queued=seq,
        model=fields.model,
        deadline=fields.deadline,
        run=event.run,
        tenant=fields.tenant or event.actor,
    )


def _moved(row: Request, state: str) -> Request:
    if state == row.state:
        return row
    if state in HELD:
        return msgspec.structs.replace(row, state=state)
    return msgspec.structs.replace(row, state=state, worker=None, until=None)


def fold(row: Request | None, event: Event) -> Request | None:
    """Apply a stored event to a row; used by import and as the check of the inline table.

    A lease is not in the log: a held row gets the time of its claim, so it counts as run out.

    Raises:
        ValueError: The event is illegal in this state.

    """
    if event.type not in TRANSITIONS:
        return row
    after = advance(row.state if row is not None else None, event.type)
    if after is None or event.request is None:
        raise ValueError(f"illegal {event.type} at seq {event.seq}")
    if row is None:
        return _queued_row(event.stream, event.seq, event)
    if event.type == "request.claimed":
        claim = _claimed_fields(event.data)
        return msgspec.structs.replace(
            row, state=after, epoch=claim.epoch, worker=claim.worker, until=event.time
        )
    return _moved(row, after)


def claimable(rows: Iterable[Request], claim: Claim) -> list[Request]:
    """Queued rows a worker may take, in the order of `app.events.store.Order`."""
    order, offered = claim.order, frozenset(claim.models or ())
    shares: Counter[str] = Counter()  # by tenant: what workers hold, and what goes before a row
    fitting: list[Request] = []
    for row in rows:
        if row.state in HELD:
            shares[row.tenant] += order.fair
        elif row.model is None or row.model in offered:
            fitting.append(row)

    def rank(row: Request) -> int:
        return -row.priority if order.priority else 0

    fitting = [row for row in fitting if order.above is None or row.priority > order.above]
    fitting.sort(key=lambda row: (rank(row), row.queued))
    if not order.fair:
        return fitting[: claim.limit]
    ranked = []
    for row in fitting:
        ranked.append((rank(row), shares[row.tenant], row.queued, row))
        shares[row.tenant] += 1
    return [row for *_, row in heapq.nsmallest(claim.limit, ranked)]

"""Claims and expiries on Postgres: look without a lock, then append under it what still holds.

The look may be stale by the time the append is decided; each append is therefore guarded by the
request's epoch and state, and one that came too late is refused like any other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from app.events import postgres_sql as sql
from app.events.catalogue import Payload, RequestAbandoned, RequestClaimed
from app.events.codec import new
from app.events.ops import Claim, Expire
from app.events.postgres_call import Guarded
from app.events.queue import Request
from app.events.store import Append, Appended, Fence, Outcome

__all__ = ["claims", "expiries"]

Peek = Callable[..., Awaitable[list[Request]]]
Call = Callable[[Sequence[Append | Guarded]], Awaitable[list[Outcome]]]

TRIES = 3
"""Looks of one claim, when other workers were faster."""


async def claims(claim: Claim, peek: Peek, call: Call) -> list[Request]:
    """Claim queued requests; the claimed rows."""
    claimed: list[Request] = []
    lease, order = int(claim.lease * 1e9), claim.order
    for _ in range(TRIES):
        room = claim.limit - len(claimed)
        if room <= 0:
            break
        found = await peek(
            sql.SELECT_CLAIMABLE_FAIRLY if order.fair else sql.SELECT_CLAIMABLE,
            list(claim.models or ()),
            room,
            order.priority,
            order.above,
        )
        if not found:
            break
        guarded = [
            _guarded(
                row,
                RequestClaimed(request=row.id, epoch=row.epoch + 1, worker=claim.worker),
                actor=f"engine:{claim.worker}",
                kind=1,
                worker=claim.worker,
                lease=lease,
            )
            for row in found
        ]
        outcomes = await call(guarded)
        claimed += [
            msgspec.structs.replace(row, state="claimed", epoch=row.epoch + 1, worker=claim.worker)
            for row, outcome in zip(found, outcomes, strict=True)
            if isinstance(outcome, Appended)
        ]
        if len(found) < room:
            break
    return claimed


async def expiries(expire: Expire, now: int | None, peek: Peek, call: Call) -> list[str]:
    """Give back what ran out, or all that a worker holds; the requests."""
    found = await peek(sql.SELECT_LOST, expire.worker, now)
    if not found:
        return []
    guarded = [
        _guarded(
            row,
            RequestAbandoned(
                request=row.id, epoch=row.epoch, worker=row.worker or "", reason=expire.reason
            ),
            actor="system",
            kind=2 if expire.worker is None else 3,
            worker=expire.worker,
        )
        for row in found
    ]
    outcomes = await call(guarded)
    return [
        row.id
        for row, outcome in zip(found, outcomes, strict=True)
        if isinstance(outcome, Appended)
    ]


def _guarded(row: Request, payload: Payload, *, actor: str, **guard: Any) -> Guarded:
    event = new(payload, actor=actor, request=row.id, run=row.run, cause=str(row.queued))
    append = Append(stream=row.stream, events=(event,), fence=Fence(row.id, row.epoch))
    return Guarded(append, **guard)

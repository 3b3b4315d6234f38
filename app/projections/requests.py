"""The requests projection: one row for each engine request, with its times and token counts."""

from __future__ import annotations

from typing import Any

import msgspec

from app.events import catalogue as c
from app.events.envelope import Event, thread_of
from app.events.lifecycle import advance
from app.projections.projection import Projection, handles
from app.projections.reading import Burst
from app.projections.rows import Rows, Table

__all__ = ["REQUEST", "RequestRow", "Requests"]


class RequestRow(msgspec.Struct):
    """One request. Times are ns since the epoch; each is when it happened first.

    ``seq`` is the position of its ``request.queued``; ``thread`` is None outside conversations.
    ``preempted`` and ``abandoned`` count; ``completion_tokens`` is what has been committed.
    """

    id: str
    seq: int
    stream: str
    thread: str | None
    run: str | None
    state: str
    priority: int
    queued: int
    epoch: int = 0
    worker: str | None = None
    model: str | None = None
    claimed: int | None = None
    started: int | None = None
    first_token: int | None = None
    ended: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    batches: int = 0
    queue_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    preempted: int = 0
    abandoned: int = 0
    reason: str | None = None
    code: str | None = None
    message: str | None = None


REQUEST = Table(
    "request",
    RequestRow,
    key=("id",),
    also=("CREATE INDEX {p}request_state ON {p}request (state, seq)",),
)


class Requests(Projection):
    """The state machine of every request, wherever it lives."""

    name = "requests"
    version = 1
    tables = (REQUEST,)

    @handles(c.RequestQueued)
    def queued(self, rows: Rows, event: Event, data: c.RequestQueued) -> None:
        if rows.get(REQUEST, data.request) is not None:
            return
        row = RequestRow(
            id=data.request,
            seq=event.seq,
            stream=event.stream,
            thread=thread_of(event.stream),
            run=event.run,
            state="queued",
            priority=data.priority,
            queued=event.time,
            model=data.model,
        )
        rows.add(REQUEST, row)

    def _advance(self, rows: Rows, event: Event, id: str) -> RequestRow | None:
        row = rows.edit(REQUEST, id)
        after = advance(row.state, event.type) if row is not None else None
        if row is None or after is None or row.stream != event.stream:
            return None
        row.state = after
        return row

    @handles(c.RequestClaimed)
    def claimed(self, rows: Rows, event: Event, data: c.RequestClaimed) -> None:
        row = self._advance(rows, event, data.request)
        if row is not None:
            row.epoch, row.worker = data.epoch, data.worker
            row.claimed = row.claimed or event.time

    @handles(c.RequestStarted)
    def started(self, rows: Rows, event: Event, data: c.RequestStarted) -> None:
        row = self._advance(rows, event, data.request)
        if row is not None:
            row.model, row.started = data.model, row.started or event.time
            row.prompt_tokens, row.cached_tokens = data.prompt_tokens, data.cached_tokens
            row.queue_ms = data.queue_ms

    @handles(c.RequestPreempted)
    def preempted(self, rows: Rows, event: Event, data: c.RequestPreempted) -> None:
        row = self._advance(rows, event, data.request)
        if row is not None:
            row.preempted += 1

    @handles(c.RequestResumed)
    def resumed(self, rows: Rows, event: Event, data: c.RequestResumed) -> None:
        self._advance(rows, event, data.request)

    @handles(c.RequestAbandoned)
    def abandoned(self, rows: Rows, event: Event, data: c.RequestAbandoned) -> None:
        row = self._advance(rows, event, data.request)
        if row is not None:
            row.worker, row.abandoned = None, row.abandoned + 1

    @handles(Burst)
    def tokens(self, rows: Rows, event: Event, burst: Burst) -> None:
        row = self._advance(rows, event, burst.request)
        if row is None:
            return
        new = burst.past(row.batches)
        if new is not None:
            row.batches = new.batches[-1].batch + 1
            row.first_token = row.first_token or new.events[0].time
            row.completion_tokens += new.tokens

    @handles(c.RequestFinished, c.RequestFailed, c.RequestCancelled)
    def ended(self, rows: Rows, event: Event, data: Any) -> None:
        row = self._advance(rows, event, data.request)
        if row is None:
            return
        row.ended = event.time
        row.reason = getattr(data, "reason", None)
        row.code, row.message = getattr(data, "code", None), getattr(data, "message", None)
        usage: c.Usage | None = data.usage
        if usage is not None:
            row.prompt_tokens = usage.prompt_tokens or row.prompt_tokens
            row.completion_tokens = usage.completion_tokens or row.completion_tokens
            row.cached_tokens = usage.cached_tokens or row.cached_tokens
        timings: c.Timings | None = getattr(data, "timings", None)
        if timings is not None:
            row.queue_ms = timings.queue_ms
            row.prefill_ms, row.decode_ms = timings.prefill_ms, timings.decode_ms

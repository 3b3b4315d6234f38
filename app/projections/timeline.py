"""The timeline projection: runs, steps, messages and requests with their phases, as spans.

The phases of a request follow each other without a gap: ``queue`` until the engine gives it a
slot, ``prefill`` until the next token is committed, ``decode`` from then on, ``preempted`` while
its blocks are given away (after which it prefills again). A request whose worker was lost queues
again.
"""

from __future__ import annotations

from typing import Any

import msgspec

from app.events import catalogue as c
from app.events.envelope import Event
from app.events.lifecycle import TERMINAL, advance
from app.projections.fold import LEFT_OPEN, MESSAGE_AFTER
from app.projections.projection import Projection, handles
from app.projections.reading import Burst
from app.projections.rows import Rows, Table

__all__ = ["SPAN", "Timeline"]


class SpanRow(msgspec.Struct):
    """A span of a stream; ``position`` is the stream version of the event that began it.

    ``first`` is when its first token was committed. ``open`` names what it may leave unfinished:
    steps and messages of a run, messages of a request. ``phase`` counts a request's phases.
    """

    stream: str
    kind: str
    id: str
    name: str
    parent: str | None
    position: int
    start: int
    status: str
    end: int | None = None
    first: int | None = None
    tokens: int = 0
    phase: int = 0
    binding: str | None = None
    detail: dict[str, Any] = {}
    open: list[str] = []


class Link(msgspec.Struct):
    """A step or messages that named a request before it was queued."""

    stream: str
    request: str
    step: str | None = None
    messages: list[str] = []


SPAN = Table("span", SpanRow, key=("stream", "kind", "id"))
LINK = Table("link", Link, key=("stream", "request"))

#: Event type -> phase that begins with it.
PHASE = {
    "request.queued": "queue",
    "request.started": "prefill",
    "request.preempted": "preempted",
    "request.resumed": "prefill",
    "request.abandoned": "queue",
}


class Timeline(Projection):
    """Spans of every stream that holds runs or requests."""

    name = "timeline"
    version = 1
    tables = (SPAN, LINK)

    def _begin(
        self, rows: Rows, event: Event, kind: str, id: str, name: str, parent: str | None
    ) -> SpanRow | None:
        if rows.get(SPAN, event.stream, kind, id) is not None:
            return None
        status = "streaming" if kind == "message" else "running"
        span = SpanRow(event.stream, kind, id, name, parent, event.version, event.time, status)
        rows.add(SPAN, span)
        run = rows.edit(SPAN, event.stream, "run", event.run) if event.run is not None else None
        if run is not None and kind in ("step", "message"):
            run.open.append(f"{kind}:{id}")
        return span

    def _end(self, rows: Rows, event: Event, kind: str, id: str, status: str) -> None:
        span = rows.get(SPAN, event.stream, kind, id)
        if span is not None and span.end is None:
            rows.add(SPAN, span)
            span.status, span.end = status, event.time

    # ---------------------------------------------------------------------- runs, steps

    @handles(c.RunStarted)
    def run_started(self, rows: Rows, event: Event, data: c.RunStarted) -> None:
        span = self._begin(rows, event, "run", data.run, data.hook, None)
        if span is not None:
            span.detail = {"node": data.node, "message": data.message}

    @handles(c.RunResumed)
    def run_resumed(self, rows: Rows, event: Event, data: c.RunResumed) -> None:
        span = rows.edit(SPAN, event.stream, "run", data.run)
        if span is not None and span.end is None:
            span.detail["node"] = data.node

    @handles(c.RunCompleted, c.RunFailed, c.RunStopped, c.RunInterrupted)
    def run_ended(self, rows: Rows, event: Event, data: Any) -> None:
        span = rows.edit(SPAN, event.stream, "run", data.run)
        if span is None or span.end is not None:
            return
        span.status, span.end = event.type.partition(".")[2], event.time
        _explain(span, data)
        for name in span.open:
            kind, _, id = name.partition(":")
            child = rows.get(SPAN, event.stream, kind, id)
            bound = child.binding if child is not None and kind == "message" else None
            if bound is None or rows.get(SPAN, event.stream, "request", bound) is None:
                status = LEFT_OPEN[span.status][kind == "step"]
                self._end(rows, event, kind, id, status)
        span.open = []

    @handles(c.StepStarted)
    def step_started(self, rows: Rows, event: Event, data: c.StepStarted) -> None:
        parent = data.parent or event.run
        span = self._begin(rows, event, "step", data.step, data.name, parent)
        if span is None:
            return
        span.detail = {"kind": data.kind}
        if data.request is not None:
            span.binding = data.request
            request = rows.edit(SPAN, event.stream, "request", data.request)
            if request is not None:
                request.parent = data.step
            else:
                _link(rows, event, data.request).step = data.step

    @handles(c.StepCompleted, c.StepFailed)
    def step_ended(self, rows: Rows, event: Event, data: Any) -> None:
        span = rows.edit(SPAN, event.stream, "step", data.step)
        if span is not None and span.end is None:
            _explain(span, data)
            self._end(rows, event, "step", data.step, event.type.partition(".")[2])

    # -------------------------------------------------------------------------- messages

    @handles(c.MessagePosted)
    def message_posted(self, rows: Rows, event: Event, data: c.MessagePosted) -> None:
        parent = data.step or event.run
        span = self._begin(rows, event, "message", data.message, data.role, parent)
        if span is not None:
            span.status, span.first, span.end = "done", event.time, event.time

    @handles(c.MessageStarted)
    def message_started(self, rows: Rows, event: Event, data: c.MessageStarted) -> None:
        parent = data.step or event.run
        span = self._begin(rows, event, "message", data.message, data.role, parent)
        if span is None or data.request is None:
            return
        span.binding = data.request
        request = rows.edit(SPAN, event.stream, "request", data.request)
        if request is None:
            _link(rows, event, data.request).messages.append(data.message)
            return
        span.first = request.first
        if request.status in TERMINAL:
            self._end(rows, event, "message", data.message, MESSAGE_AFTER[request.status])
        else:
            request.open.append(data.message)

    @handles(c.MessageDelta)
    def message_delta(self, rows: Rows, event: Event, data: c.MessageDelta) -> None:
        span = rows.get(SPAN, event.stream, "message", data.message)
        if span is not None and span.first is None and span.binding is None:
            rows.add(SPAN, span).first = event.time

    @handles(c.MessageCompleted, c.MessageRemoved)
    def message_ended(self, rows: Rows, event: Event, data: Any) -> None:
        status = "done" if event.type == "message.completed" else "removed"
        self._end(rows, event, "message", data.message, status)

    # -------------------------------------------------------------------------- requests

    def _next_phase(self, rows: Rows, event: Event, request: SpanRow, name: str | None) -> None:
        """End the phase a request is in, and begin another unless ``name`` is None."""
        self._end(rows, event, "phase", f"{request.id}:{request.phase}", "completed")
        if name is not None:
            request.phase += 1
            id = f"{request.id}:{request.phase}"
            self._begin(rows, event, "phase", id, name, request.id)

    @handles(c.RequestQueued)
    def request_queued(self, rows: Rows, event: Event, data: c.RequestQueued) -> None:
        link = rows.get(LINK, event.stream, data.request) or Link(event.stream, data.request)
        parent = link.step or event.run
        span = self._begin(rows, event, "request", data.request, data.model or "", parent)
        if span is not None:
            span.status, span.open = "queued", list(link.messages)
            span.detail = {"priority": data.priority}
            self._next_phase(rows, event, span, PHASE[event.type])

    def _advance(self, rows: Rows, event: Event, id: str) -> SpanRow | None:
        span = rows.edit(SPAN, event.stream, "request", id)
        after = advance(span.status, event.type) if span is not None else None
        if span is None or after is None:
            return None
        span.status = after
        return span

    @handles(c.RequestClaimed)
    def request_claimed(self, rows: Rows, event: Event, data: c.RequestClaimed) -> None:
        span = self._advance(rows, event, data.request)
        if span is not None:
            span.detail |= {"worker": data.worker, "epoch": data.epoch}

    @handles(c.RequestStarted, c.RequestPreempted, c.RequestResumed, c.RequestAbandoned)
    def request_moved(self, rows: Rows, event: Event, data: Any) -> None:
        span = self._advance(rows, event, data.request)
        if span is None:
            return
        if isinstance(data, c.RequestStarted):
            span.name = data.model
            span.detail |= {
                "prompt_tokens": data.prompt_tokens,
                "cached_tokens": data.cached_tokens,
                "resumed_tokens": data.resumed_tokens,
            }
        self._next_phase(rows, event, span, PHASE[event.type])

    @handles(Burst)
    def tokens(self, rows: Rows, event: Event, burst: Burst) -> None:
        span = self._advance(rows, event, burst.request)
        if span is None:
            return
        phase = rows.edit(SPAN, event.stream, "phase", f"{span.id}:{span.phase}")
        if phase is not None and phase.name == "prefill":
            self._next_phase(rows, event, span, "decode")
            phase = rows.edit(SPAN, event.stream, "phase", f"{span.id}:{span.phase}")
        if phase is not None:
            phase.tokens += burst.tokens
        span.tokens += burst.tokens
        if span.first is not None:
            return
        span.first = event.time
        for id in span.open:  # messages bound later take the request's
            message = rows.get(SPAN, event.stream, "message", id)
            if message is not None and message.first is None:
                rows.add(SPAN, message).first = event.time

    @handles(c.RequestFinished, c.RequestFailed, c.RequestCancelled)
    def request_ended(self, rows: Rows, event: Event, data: Any) -> None:
        span = self._advance(rows, event, data.request)
        if span is None:
            return
        span.end = event.time
        self._next_phase(rows, event, span, None)
        _explain(span, data)
        if isinstance(data, c.RequestFailed):
            span.detail |= {"code": data.code, "error": data.message}
        for id in span.open:
            self._end(rows, event, "message", id, MESSAGE_AFTER[span.status])
        span.open = []


def _link(rows: Rows, event: Event, request: str) -> Link:
    link = rows.edit(LINK, event.stream, request)
    return link if link is not None else rows.add(LINK, Link(event.stream, request))


def _explain(span: SpanRow, data: Any) -> None:
    """Note why and with what a span ended."""
    reason, error = getattr(data, "reason", None), getattr(data, "error", None)
    if reason is not None:
        span.detail["reason"] = reason
    if error is not None:
        span.detail["error"] = f"{error.kind}: {error.message}"

"""The fold of events into spans. Pure.

A span is known when it has ended. Its ids are made of the ids that the log has, so the same events
give the same spans at any time and anywhere: whoever exports them twice says the same thing twice.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import sha256
from typing import Any

import msgspec

from app.events import catalogue as c
from app.events.envelope import Event, thread_of
from app.telemetry import attributes, context
from app.telemetry.attributes import Attributes

__all__ = ["TYPES", "Fold", "Span", "span_id", "trace_id"]

_ENDS = {
    **dict.fromkeys(("run.completed", "run.failed", "run.stopped", "run.interrupted"), "run"),
    **dict.fromkeys(("step.completed", "step.failed"), "step"),
    **dict.fromkeys(("request.finished", "request.failed", "request.cancelled"), "request"),
}
_MARKS = {
    **dict.fromkeys(("request.claimed", "request.started", "request.preempted"), "request"),
    **dict.fromkeys(("request.resumed", "request.abandoned", "request.embedded"), "request"),
    "run.resumed": "run",
}
TYPES = ("run.started", "step.started", "request.queued", *_MARKS, *_ENDS)
"""What spans are made of."""

MOST = 50_000
"""Most spans that are open at a time; of more, the oldest are looked up in the log again."""

Key = tuple[str, str, str]
"""Stream, kind, id."""


class Span(msgspec.Struct, frozen=True):
    """Something that took time; ns since the epoch.

    ``trace`` has 128 bits, ``id`` and ``parent`` 64. ``error`` is the kind of error it ended with.
    ``marks`` are what happened on the way: (time, event type).
    """

    trace: int
    id: int
    parent: int | None
    name: str
    client: bool
    start: int
    end: int
    attributes: Attributes
    error: str | None
    marks: tuple[tuple[int, str], ...]


class _Open(msgspec.Struct):
    trace: int
    id: int
    parent: int | None
    name: str
    start: int
    attributes: Attributes
    client: bool = False
    marks: list[tuple[int, str]] = []
    steps: list[str] = []  # of a run: what it may leave open


def trace_id(kind: str, id: str) -> int:
    """Id of the trace of a run, or of requests without one."""
    return int.from_bytes(sha256(f"trace {kind} {id}".encode()).digest()[:16])


def span_id(kind: str, id: str) -> int:
    """Id of the span of a run, step or request."""
    return int.from_bytes(sha256(f"span {kind} {id}".encode()).digest()[:8])


class Fold:
    """Takes events of the log in order, gives the spans that they end.

    Args:
        content: Whether attributes hold texts: prompts, answers, inputs and outputs, messages of
            errors.

    """

    def __init__(self, *, content: bool = False) -> None:
        self._content = content
        self._open: OrderedDict[Key, _Open] = OrderedDict()
        self._links: dict[tuple[str, str], str] = {}  # stream and request -> the step of it

    def __len__(self) -> int:
        """How many spans are open."""
        return len(self._open)

    def missing(self, event: Event, payload: c.Payload) -> bool:
        """Whether an event ends something whose beginning was not seen, or is forgotten.

        Then the stream must be folded from its first event on, up to this one.
        """
        kind = _ENDS.get(event.type)
        return kind is not None and self._key(event, kind, payload) not in self._open

    def apply(self, event: Event, payload: c.Payload) -> list[Span]:
        """Take in an event of `TYPES`; one that is odd changes nothing.

        Args:
            event: As the log has it.
            payload: Its payload, decoded; those that are not readable are passed over.

        Returns:
            The spans that end with it, the inner ones first.

        """
        match payload:
            case c.RunStarted():
                self._begin_run(event, payload)
            case c.StepStarted():
                self._begin_step(event, payload)
            case c.RequestQueued():
                self._begin_request(event, payload)
            case _ if event.type in _MARKS:
                self._mark(event, _MARKS[event.type], payload)
            case _ if event.type in _ENDS:
                return self._end(event, _ENDS[event.type], payload)
        return []

    # ---------------------------------------------------------------------------- beginnings

    def _begin_run(self, event: Event, data: c.RunStarted) -> None:
        found = attributes.run(data, thread_of(event.stream))
        trace, id = trace_id("run", data.run), span_id("run", data.run)
        self._add(
            (event.stream, "run", data.run), _Open(trace, id, None, data.hook, event.time, found)
        )

    def _begin_step(self, event: Event, data: c.StepStarted) -> None:
        parent = span_id("step", data.parent) if data.parent else None
        if parent is None and event.run:
            parent = span_id("run", event.run)
        tool = data.kind == "tool"
        name = f"execute_tool {data.name}" if tool else data.name
        found = attributes.step(data, content=self._content)
        trace = self._trace(event, f"step {data.step}")
        key = (event.stream, "step", data.step)
        self._add(key, _Open(trace, span_id("step", data.step), parent, name, event.time, found))
        run = self._open.get((event.stream, "run", event.run or ""))
        if run is not None:
            run.steps.append(data.step)
        if data.request is not None:
            request = self._open.get((event.stream, "request", data.request))
            if request is not None:
                request.parent = span_id("step", data.step)
            else:
                self._links[event.stream, data.request] = data.step

    def _begin_request(self, event: Event, data: c.RequestQueued) -> None:
        step = self._links.pop((event.stream, data.request), None)
        parent = span_id("step", step) if step else None
        if parent is None and event.run:
            parent = span_id("run", event.run)
        found = attributes.queued(data, thread_of(event.stream), content=self._content)
        name = str(found["gen_ai.operation.name"])
        trace, id = self._trace(event, f"request {data.request}"), span_id("request", data.request)
        caller = context.parse(data.metadata.get(context.HEADER))
        if caller is not None and parent is None:
            trace, parent = caller
        key = (event.stream, "request", data.request)
        self._add(key, _Open(trace, id, parent, name, event.time, found, client=True))

    def _add(self, key: Key, span: _Open) -> None:
        self._open[key] = span
        while len(self._open) > MOST:
            self._open.popitem(last=False)
        if len(self._links) > MOST:
            self._links.clear()

    @staticmethod
    def _trace(event: Event, other: str) -> int:
        """The run's, or one for all that is in a stream without runs, or its own."""
        if event.run:
            return trace_id("run", event.run)
        inside = thread_of(event.stream) is not None
        return trace_id("of", other) if inside else trace_id("stream", event.stream)

    # ------------------------------------------------------------------------ middles, ends

    @staticmethod
    def _key(event: Event, kind: str, payload: Any) -> Key:
        return event.stream, kind, getattr(payload, kind)

    def _mark(self, event: Event, kind: str, payload: Any) -> None:
        span = self._open.get(self._key(event, kind, payload))
        if span is not None:
            span.marks.append((event.time, event.type))
            span.attributes |= attributes.moved(payload)

    def _end(self, event: Event, kind: str, payload: Any) -> list[Span]:
        span = self._open.pop(self._key(event, kind, payload), None)
        if span is None:
            return []
        state = event.type.partition(".")[2]
        ended = [
            _closed(left, event.time, {"everlog.step.state": state}, None)
            for step in reversed(span.steps)
            if (left := self._open.pop((event.stream, "step", step), None)) is not None
        ]
        found = attributes.ended(payload, content=self._content)
        if span.client:
            model = span.attributes.get("gen_ai.request.model")
            span.name = f"{span.name} {model}" if model else span.name
        error = attributes.error(payload)
        return [*ended, _closed(span, event.time, found, error)]


def _closed(span: _Open, end: int, found: Attributes, error: str | None) -> Span:
    return Span(
        trace=span.trace,
        id=span.id,
        parent=span.parent,
        name=span.name,
        client=span.client,
        start=span.start,
        end=max(span.start, end),  # clocks of several machines
        attributes={**span.attributes, **found},
        error=error,
        marks=tuple(span.marks),
    )

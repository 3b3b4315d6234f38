"""What one conversation looks like at one moment: plain structs, JSON-encodable by msgspec.

Times are nanoseconds since the epoch. Statuses are closed sets of words:

- message: ``streaming``, ``done``, ``failed``, ``stopped``, ``interrupted``, ``removed``
- run and step: ``running``, ``completed``, ``failed``, ``stopped``, ``interrupted``
- request: the states of ``app.events.lifecycle``
"""

from __future__ import annotations

from typing import Any

import msgspec

from app.events.catalogue import ErrorInfo, SamplingParams, Timings, Usage

__all__ = [
    "Feedback",
    "Index",
    "MessageState",
    "RequestState",
    "RunState",
    "StepState",
    "ThreadState",
    "derive_title",
]

TITLE_LENGTH = 60


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """A user's judgement of a message: 1 or -1."""

    value: int
    comment: str | None = None


class MessageState(msgspec.Struct, kw_only=True):
    """One message. With ``request`` its content is that request's text while it streams.

    ``version`` is the stream version of the event that began it; ``ended`` is when the text was
    whole, None while it streams; ``first_token`` when its first text was committed.
    """

    id: str
    role: str
    content: str = ""
    author: str | None = None
    status: str = "done"
    level: str = "info"
    parent: str | None = None
    step: str | None = None
    run: str | None = None
    request: str | None = None
    version: int
    created: int
    updated: int
    first_token: int | None = None
    ended: int | None = None
    edited: bool = False
    feedback: Feedback | None = None
    metadata: dict[str, Any] = {}


class RunState(msgspec.Struct, kw_only=True):
    """One call of a handler."""

    id: str
    hook: str
    node: str
    message: str | None = None
    status: str = "running"
    resumable: bool = False
    version: int
    started: int
    ended: int | None = None
    error: ErrorInfo | None = None
    reason: str | None = None


class StepState(msgspec.Struct, kw_only=True):
    """One step of a run; ``parent`` makes the tree."""

    id: str
    name: str
    kind: str = "undefined"
    run: str | None = None
    parent: str | None = None
    request: str | None = None
    input: Any = None
    output: Any = None
    status: str = "running"
    version: int
    started: int
    ended: int | None = None
    error: ErrorInfo | None = None


class RequestState(msgspec.Struct, kw_only=True):
    """One engine request. ``claimed`` and ``started`` are the first time each happened.

    ``text`` and ``tokens`` are what has been committed; ``batches`` counts token batches. One that
    ``embeds`` becomes a vector of so many ``dimensions``. ``tools`` are the names of those on
    offer; if ``forced``, all of the text is calls. ``waited_for`` says why it began late the last
    time, ``preemptions`` why it lost its place.
    """

    id: str
    state: str = "queued"
    epoch: int = 0
    run: str | None = None
    model: str | None = None
    worker: str | None = None
    params: SamplingParams
    tools: list[str] = []
    forced: bool = False
    embeds: bool = False
    dimensions: int | None = None
    text: str = ""
    tokens: list[int] = []
    batches: int = 0
    prompt_tokens: int = 0
    waited_for: list[str] = []
    preemptions: list[str] = []
    reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    code: str | None = None
    message: str | None = None
    version: int
    queued: int
    claimed: int | None = None
    started: int | None = None
    first_token: int | None = None
    ended: int | None = None


class Index:
    """Lookup tables of a state, kept beside it; rebuilt from the lists when absent."""

    __slots__ = ("bound", "messages", "requests", "runs", "steps")

    def __init__(self, state: ThreadState) -> None:
        self.messages = {message.id: message for message in state.messages}
        self.runs = {run.id: run for run in state.runs}
        self.steps = {step.id: step for step in state.steps}
        self.requests = {request.id: request for request in state.requests}
        self.bound: dict[str, list[MessageState]] = {}
        for message in state.messages:
            if message.request is not None:
                self.bound.setdefault(message.request, []).append(message)


class ThreadState(msgspec.Struct, kw_only=True, dict=True):
    """A conversation as of one event: ``version`` in its stream, ``seq`` in the log.

    ``title`` is what the thread was called, else the beginning of the first user message, else
    None. ``source`` and ``source_version`` say what it was forked from.
    """

    id: str
    version: int = 0
    seq: int = 0
    owner: str | None = None
    title: str | None = None
    created: int = 0
    updated: int = 0
    deleted: bool = False
    shared: bool = False
    source: str | None = None
    source_version: int | None = None
    metadata: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    session: dict[str, Any] = {}
    messages: list[MessageState] = []
    runs: list[RunState] = []
    steps: list[StepState] = []
    requests: list[RequestState] = []

    @property
    def index(self) -> Index:
        """Lookup by id. Not part of the value: never encoded, never compared."""
        known = self.__dict__
        if "_index" not in known:
            known["_index"] = Index(self)
        found: Index = known["_index"]
        return found


def derive_title(text: str) -> str | None:
    """Return the beginning of ``text`` as a title: one line, cut at a word; None if blank."""
    line = " ".join(text[: 20 * TITLE_LENGTH].split())
    if len(line) <= TITLE_LENGTH:
        return line or None
    head = line[: TITLE_LENGTH + 1].rpartition(" ")[0]
    return (head or line[:TITLE_LENGTH]).rstrip() + "…"

"""The history projection: conversations and their messages, and search over both.

It follows the rules of the `ThreadState` fold, with one difference: a message's text is in its
row once it is whole. Until then its pieces are kept aside, each written once.
"""

from __future__ import annotations

from typing import Any

import msgspec

from app.events import catalogue as c
from app.events.envelope import Event
from app.events.lifecycle import TERMINAL, advance
from app.projections.fold import LEFT_OPEN, MESSAGE_AFTER
from app.projections.model import derive_title
from app.projections.projection import Projection, handles
from app.projections.reading import Burst
from app.projections.rows import Pieces, Rows, Table

__all__ = ["MESSAGE", "REQUEST", "RUN", "THREAD", "History"]


class Thread(msgspec.Struct):
    """``first``: seq of its first event; ``active``: of its last message's beginning."""

    first: int
    id: str
    created: int
    updated: int
    active: int
    version: int = 0
    owner: str | None = None
    title: str | None = None
    messages: int = 0
    deleted: bool = False


class Message(msgspec.Struct):
    """``first``: seq of the event that began it. ``text`` is whole once ``ended`` is set."""

    first: int
    thread: str
    id: str
    version: int
    role: str
    created: int
    author: str | None = None
    level: str = "info"
    status: str = "done"
    parent: str | None = None
    step: str | None = None
    run: str | None = None
    request: str | None = None
    text: str = ""
    ended: int | None = None
    edited: bool = False
    feedback: int = 0
    comment: str | None = None


class Run(msgspec.Struct):
    """``open``: messages it began that it may leave unfinished."""

    thread: str
    id: str
    hook: str
    node: str
    started: int
    message: str | None = None
    resumable: bool = False
    status: str = "running"
    ended: int | None = None
    open: list[str] = []


class Request(msgspec.Struct):
    """``state`` is None while only a message has named it; ``text`` is there once it ended."""

    thread: str
    id: str
    state: str | None = None
    batches: int = 0
    text: str = ""
    messages: list[str] = []


THREAD = Table(
    "thread",
    Thread,
    key=("id",),
    rowid="first",
    search="title",
    also=("CREATE INDEX {p}thread_active ON {p}thread (owner, active) WHERE deleted = 0",),
)
MESSAGE = Table(
    "message",
    Message,
    key=("thread", "id"),
    rowid="first",
    search="text",
    also=("CREATE INDEX {p}message_order ON {p}message (thread, first)",),
)
RUN = Table(
    "run",
    Run,
    key=("thread", "id"),
    also=("CREATE INDEX {p}run_open ON {p}run (thread) WHERE ended IS NULL",),
)
REQUEST = Table("request", Request, key=("thread", "id"))


class History(Projection):
    """Threads, messages with their final text, runs, and full-text search."""

    name = "history"
    version = 1
    tables = (THREAD, MESSAGE, RUN, REQUEST)
    pieces = Pieces("piece")
    every = True

    def each(self, rows: Rows, event: Event) -> bool:
        """Every event of a conversation moves its thread's version; others are passed over."""
        if not event.stream.startswith("thread/"):
            return False
        thread = event.stream[7:]
        row = rows.edit(THREAD, thread)
        if row is None:
            row = Thread(event.seq, thread, event.time, event.time, event.seq)
            rows.add(THREAD, row)
        row.version, row.updated = event.version, event.time
        return True

    # --------------------------------------------------------------------------- threads

    @handles(c.ThreadCreated)
    def thread_created(self, rows: Rows, event: Event, data: c.ThreadCreated) -> None:
        row = _thread(rows, event)
        if row.owner is None:
            row.owner, row.title = data.owner, data.title or row.title

    @handles(c.ThreadRenamed)
    def thread_renamed(self, rows: Rows, event: Event, data: c.ThreadRenamed) -> None:
        _thread(rows, event).title = data.title

    @handles(c.ThreadDeleted)
    def thread_deleted(self, rows: Rows, event: Event, data: c.ThreadDeleted) -> None:
        _thread(rows, event).deleted = True

    # -------------------------------------------------------------------------- messages

    @handles(c.MessagePosted)
    def message_posted(self, rows: Rows, event: Event, data: c.MessagePosted) -> None:
        message = self._begin(rows, event, data)
        if message is None:
            return
        message.text, message.ended, message.level = data.content, event.time, data.level
        thread = _thread(rows, event)
        if thread.title is None and data.role == "user":
            thread.title = derive_title(data.content)

    @handles(c.MessageStarted)
    def message_started(self, rows: Rows, event: Event, data: c.MessageStarted) -> None:
        message = self._begin(rows, event, data)
        if message is None:
            return
        message.status, message.request = "streaming", data.request
        if event.run is not None:
            run = rows.edit(RUN, message.thread, event.run)
            if run is not None:
                run.open.append(message.id)
        if data.request is None:
            return
        request = rows.edit(REQUEST, message.thread, data.request)
        if request is None:
            request = rows.add(REQUEST, Request(message.thread, data.request))
        request.messages.append(message.id)
        if request.state in TERMINAL:
            _end(rows, event, message, MESSAGE_AFTER[request.state], request.text)

    def _begin(self, rows: Rows, event: Event, data: Any) -> Message | None:
        thread = _thread(rows, event)
        if rows.get(MESSAGE, thread.id, data.message) is not None:
            return None
        thread.messages, thread.active = thread.messages + 1, event.seq
        message = Message(event.seq, thread.id, data.message, event.version, data.role, event.time)
        message.author, message.run = data.author, event.run
        message.parent, message.step = data.parent, data.step
        return rows.add(MESSAGE, message)

    @handles(c.MessageDelta)
    def message_delta(self, rows: Rows, event: Event, data: c.MessageDelta) -> None:
        message = _message(rows, event, data.message)
        if message is None or message.request is not None:
            return
        if message.status == "streaming":
            rows.add_pieces(event.stream, message.id, [(event.seq, data.text)])
        else:
            rows.add(MESSAGE, message).text += data.text

    @handles(c.MessageCompleted)
    def message_completed(self, rows: Rows, event: Event, data: c.MessageCompleted) -> None:
        message = _message(rows, event, data.message)
        if message is None:
            return
        content, status = data.content, message.status
        if content is None and message.request is not None:
            content = _request_text(rows, event, message)
        status = "done" if status == "streaming" else status
        _end(rows, event, message, status, content, replace=data.content is not None)

    @handles(c.MessageEdited)
    def message_edited(self, rows: Rows, event: Event, data: c.MessageEdited) -> None:
        message = _message(rows, event, data.message)
        if message is not None:
            rows.add(MESSAGE, message)
            message.text, message.edited = data.content, True
            rows.drop_pieces(event.stream, message.id)

    @handles(c.MessageRemoved)
    def message_removed(self, rows: Rows, event: Event, data: c.MessageRemoved) -> None:
        message = _message(rows, event, data.message)
        if message is not None:
            _end(rows, event, message, "removed", "", replace=True)
            _thread(rows, event).messages -= 1

    @handles(c.MessageFeedback)
    def message_feedback(self, rows: Rows, event: Event, data: c.MessageFeedback) -> None:
        message = rows.edit(MESSAGE, event.stream[7:], data.message)
        if message is not None:
            message.feedback = data.value
            message.comment = data.comment if data.value else None

    # ------------------------------------------------------------------------------ runs

    @handles(c.RunStarted)
    def run_started(self, rows: Rows, event: Event, data: c.RunStarted) -> None:
        thread = event.stream[7:]
        if rows.get(RUN, thread, data.run) is None:
            run = Run(thread, data.run, data.hook, data.node, event.time)
            run.message, run.resumable = data.message, data.resumable
            rows.add(RUN, run)

    @handles(c.RunResumed)
    def run_resumed(self, rows: Rows, event: Event, data: c.RunResumed) -> None:
        run = rows.edit(RUN, event.stream[7:], data.run)
        if run is not None and run.ended is None:
            run.node = data.node

    @handles(c.RunCompleted, c.RunFailed, c.RunStopped, c.RunInterrupted)
    def run_ended(self, rows: Rows, event: Event, data: Any) -> None:
        run = rows.edit(RUN, event.stream[7:], data.run)
        if run is None or run.ended is not None:
            return
        run.status, run.ended = event.type.partition(".")[2], event.time
        for id in run.open:
            message = _message(rows, event, id)
            if message is None or message.status != "streaming":
                continue
            request = message.request and rows.get(REQUEST, run.thread, message.request)
            if not request or request.state is None:
                _end(rows, event, message, LEFT_OPEN[run.status][0])
        run.open = []

    # -------------------------------------------------------------------------- requests

    @handles(c.RequestQueued)
    def request_queued(self, rows: Rows, event: Event, data: c.RequestQueued) -> None:
        thread = event.stream[7:]
        request = rows.edit(REQUEST, thread, data.request)
        if request is None:
            request = rows.add(REQUEST, Request(thread, data.request))
        request.state = request.state or "queued"

    @handles(
        c.RequestClaimed,
        c.RequestStarted,
        c.RequestPreempted,
        c.RequestResumed,
        c.RequestAbandoned,
    )
    def request_moved(self, rows: Rows, event: Event, data: Any) -> None:
        self._advance(rows, event, data.request)

    def _advance(self, rows: Rows, event: Event, id: str) -> Request | None:
        request = rows.edit(REQUEST, event.stream[7:], id)
        if request is None or request.state is None:
            return None
        after = advance(request.state, event.type)
        if after is None:
            return None
        request.state = after
        return request

    @handles(Burst)
    def tokens_generated(self, rows: Rows, event: Event, burst: Burst) -> None:
        thread, last = _thread(rows, event), burst.events[-1]
        thread.version, thread.updated = last.version, last.time
        request = self._advance(rows, event, burst.request)
        if request is None:
            return
        new = burst.past(request.batches)
        if new is not None:
            request.batches = new.batches[-1].batch + 1
            pieces = zip(new.events, new.batches, strict=True)
            rows.add_pieces(event.stream, request.id, [(e.seq, data.text) for e, data in pieces])

    @handles(c.RequestFinished, c.RequestFailed, c.RequestCancelled)
    def request_ended(self, rows: Rows, event: Event, data: Any) -> None:
        request = self._advance(rows, event, data.request)
        if request is None:
            return
        text = getattr(data, "text", None)
        request.text = rows.join_pieces(event.stream, request.id) if text is None else text
        rows.drop_pieces(event.stream, request.id)
        for id in request.messages:
            message = _message(rows, event, id)
            if message is not None and message.status == "streaming":
                _end(rows, event, message, MESSAGE_AFTER[str(request.state)], request.text)


def _thread(rows: Rows, event: Event) -> Thread:
    """The event's thread, which `History.each` has made sure of."""
    thread = rows.edit(THREAD, event.stream[7:])
    assert thread is not None
    return thread


def _message(rows: Rows, event: Event, id: str) -> Message | None:
    """A message that is there and not removed."""
    message = rows.get(MESSAGE, event.stream[7:], id)
    return None if message is None or message.status == "removed" else message


def _request_text(rows: Rows, event: Event, message: Message) -> str:
    """What a message's request has said so far."""
    request = rows.get(REQUEST, message.thread, str(message.request))
    if request is None or request.state in TERMINAL:
        return request.text if request is not None else ""
    return rows.join_pieces(event.stream, request.id)


def _end(
    rows: Rows,
    event: Event,
    message: Message,
    status: str,
    text: str | None = None,
    *,
    replace: bool = False,
) -> None:
    """End a message with a text; None: with what it has. An edited text stays, unless replaced."""
    if message.ended is None or replace:
        if text is None:
            message.text += rows.join_pieces(event.stream, message.id)
        elif replace or not message.edited:
            message.text = text
    rows.drop_pieces(event.stream, message.id)
    message.status = status
    message.ended = event.time if message.ended is None else message.ended
    rows.add(MESSAGE, message)

"""The fold of a conversation's events into a `ThreadState`: one small function per event type.

Threads, messages, runs and steps are here, requests in `fold_requests`.

Nothing here refuses an odd history: an event about an unknown id, or one that is illegal in the
state its subject is in, changes nothing but the position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from app.events import catalogue as c
from app.events.envelope import Event
from app.projections.model import (
    Feedback,
    MessageState,
    RequestState,
    RunState,
    StepState,
    ThreadState,
    derive_title,
)
from app.projections.reading import Burst

__all__ = ["HANDLERS", "LEFT_OPEN", "MESSAGE_AFTER", "follow_end", "on"]

Handler = Callable[[ThreadState, Event, Any], None]
H = TypeVar("H", bound=Handler)

HANDLERS: dict[type, Handler] = {}


def on(*payloads: type[c.Payload | Burst]) -> Callable[[H], H]:
    """Register the handler of some payload types."""

    def register(handler: H) -> H:
        HANDLERS.update(dict.fromkeys(payloads, handler))
        return handler

    return register


# ------------------------------------------------------------------------------- threads


@on(c.ThreadCreated)
def thread_created(state: ThreadState, event: Event, data: c.ThreadCreated) -> None:
    if state.owner is None:
        state.owner, state.metadata = data.owner, data.metadata
        state.title = data.title or state.title


@on(c.ThreadRenamed)
def thread_renamed(state: ThreadState, event: Event, data: c.ThreadRenamed) -> None:
    state.title = data.title


@on(c.ThreadForked)
def thread_forked(state: ThreadState, event: Event, data: c.ThreadForked) -> None:
    state.source, state.source_version = data.source, data.version


@on(c.ThreadShared)
def thread_shared(state: ThreadState, event: Event, data: c.ThreadShared) -> None:
    state.shared = data.shared


@on(c.ThreadSettingsChanged)
def settings_changed(state: ThreadState, event: Event, data: c.ThreadSettingsChanged) -> None:
    state.settings = data.settings


@on(c.ThreadMetadataChanged)
def metadata_changed(state: ThreadState, event: Event, data: c.ThreadMetadataChanged) -> None:
    state.metadata = data.metadata


@on(c.ThreadDeleted)
def thread_deleted(state: ThreadState, event: Event, data: c.ThreadDeleted) -> None:
    state.deleted = True


@on(c.SessionChanged)
def session_changed(state: ThreadState, event: Event, data: c.SessionChanged) -> None:
    session = {key: value for key, value in state.session.items() if key not in data.removed}
    state.session = session | data.values


# ------------------------------------------------------------------------------ messages


def _add_message(state: ThreadState, message: MessageState) -> None:
    state.messages.append(message)
    state.index.messages[message.id] = message


@on(c.MessagePosted)
def message_posted(state: ThreadState, event: Event, data: c.MessagePosted) -> None:
    if data.message in state.index.messages:
        return
    _add_message(
        state,
        MessageState(
            id=data.message,
            role=data.role,
            content=data.content,
            author=data.author,
            level=data.level,
            parent=data.parent,
            step=data.step,
            run=event.run,
            version=event.version,
            created=event.time,
            updated=event.time,
            first_token=event.time,
            ended=event.time,
            metadata=data.metadata,
        ),
    )
    if state.title is None and data.role == "user":
        state.title = derive_title(data.content)


@on(c.MessageStarted)
def message_started(state: ThreadState, event: Event, data: c.MessageStarted) -> None:
    if data.message in state.index.messages:
        return
    message = MessageState(
        id=data.message,
        role=data.role,
        author=data.author,
        status="streaming",
        parent=data.parent,
        step=data.step,
        run=event.run,
        request=data.request,
        version=event.version,
        created=event.time,
        updated=event.time,
        metadata=data.metadata,
    )
    _add_message(state, message)
    if data.request is not None:
        state.index.bound.setdefault(data.request, []).append(message)
        request = state.index.requests.get(data.request)
        if request is not None:
            message.content = request.text
            message.first_token = request.first_token
            follow_end(message, request, event)


@on(c.MessageDelta)
def message_delta(state: ThreadState, event: Event, data: c.MessageDelta) -> None:
    message = state.index.messages.get(data.message)
    if message is None or message.status == "removed" or message.request is not None:
        return
    if message.first_token is None:
        message.first_token = event.time
    # A local with the only reference lets CPython grow the string in place.
    content, message.content = message.content, ""
    content += data.text
    message.content = content
    message.updated = event.time


@on(c.MessageCompleted)
def message_completed(state: ThreadState, event: Event, data: c.MessageCompleted) -> None:
    message = state.index.messages.get(data.message)
    if message is None or message.status == "removed":
        return
    if data.content is not None:
        message.content = data.content
    # What a stopped run still writes is its clean-up: the message stays stopped.
    _end_message(message, "done" if message.status == "streaming" else message.status, event)


@on(c.MessageEdited)
def message_edited(state: ThreadState, event: Event, data: c.MessageEdited) -> None:
    message = state.index.messages.get(data.message)
    if message is None or message.status == "removed":
        return
    message.content, message.edited, message.updated = data.content, True, event.time
    message.metadata = message.metadata | data.metadata


@on(c.MessageRemoved)
def message_removed(state: ThreadState, event: Event, data: c.MessageRemoved) -> None:
    message = state.index.messages.get(data.message)
    if message is None or message.status == "removed":
        return
    message.content = ""
    _end_message(message, "removed", event)


@on(c.MessageFeedback)
def message_feedback(state: ThreadState, event: Event, data: c.MessageFeedback) -> None:
    message = state.index.messages.get(data.message)
    if message is not None:
        given = Feedback(value=data.value, comment=data.comment)
        message.feedback = given if data.value else None


def _end_message(message: MessageState, status: str, event: Event) -> None:
    message.status, message.updated = status, event.time
    if message.ended is None:
        message.ended = event.time


#: What becomes of a bound message when its request ends.
MESSAGE_AFTER = {"finished": "done", "failed": "failed", "cancelled": "stopped"}


def follow_end(message: MessageState, request: RequestState, event: Event) -> None:
    status = MESSAGE_AFTER.get(request.state)
    if status is not None:
        _end_message(message, status, event)


# -------------------------------------------------------------------------- runs, steps


@on(c.RunStarted)
def run_started(state: ThreadState, event: Event, data: c.RunStarted) -> None:
    if data.run in state.index.runs:
        return
    run = RunState(
        id=data.run,
        hook=data.hook,
        node=data.node,
        message=data.message,
        resumable=data.resumable,
        version=event.version,
        started=event.time,
    )
    state.runs.append(run)
    state.index.runs[run.id] = run


#: How a run ends -> what becomes of what it left open: (messages, steps).
LEFT_OPEN = {
    "completed": ("done", "completed"),
    "failed": ("failed", "failed"),
    "stopped": ("stopped", "stopped"),
    "interrupted": ("interrupted", "interrupted"),
}


@on(c.RunCompleted, c.RunFailed, c.RunStopped, c.RunInterrupted)
def run_ended(state: ThreadState, event: Event, data: Any) -> None:
    run = state.index.runs.get(data.run)
    if run is None or run.ended is not None:
        return
    run.status, run.ended = event.type.partition(".")[2], event.time
    run.error = getattr(data, "error", None)
    run.reason = getattr(data, "reason", None)
    message_status, step_status = LEFT_OPEN[run.status]
    for message in _since(state.messages, run):
        orphan = message.request is None or message.request not in state.index.requests
        if message.run == run.id and message.status == "streaming" and orphan:
            _end_message(message, message_status, event)
    for step in _since(state.steps, run):
        if step.run == run.id and step.status == "running":
            step.status, step.ended = step_status, event.time


def _since(items: list[Any], run: RunState) -> Iterator[Any]:
    """Iterate over what began after the run did: all that it can have begun."""
    for item in reversed(items):
        if item.version < run.version:
            return
        yield item


@on(c.RunResumed)
def run_resumed(state: ThreadState, event: Event, data: c.RunResumed) -> None:
    run = state.index.runs.get(data.run)
    if run is not None and run.ended is None:
        run.node = data.node


@on(c.StepStarted)
def step_started(state: ThreadState, event: Event, data: c.StepStarted) -> None:
    if data.step in state.index.steps:
        return
    step = StepState(
        id=data.step,
        name=data.name,
        kind=data.kind,
        run=event.run,
        parent=data.parent,
        request=data.request,
        input=data.input,
        version=event.version,
        started=event.time,
    )
    state.steps.append(step)
    state.index.steps[step.id] = step


@on(c.StepDelta)
def step_delta(state: ThreadState, event: Event, data: c.StepDelta) -> None:
    step = state.index.steps.get(data.step)
    if step is None or step.status != "running":
        return
    output, step.output = step.output if isinstance(step.output, str) else "", None
    output += data.text
    step.output = output


@on(c.StepCompleted, c.StepFailed)
def step_ended(state: ThreadState, event: Event, data: Any) -> None:
    step = state.index.steps.get(data.step)
    if step is None or step.status != "running":
        return
    step.status, step.ended = event.type.partition(".")[2], event.time
    step.error = getattr(data, "error", None)
    if data.output is not None:
        step.output = data.output

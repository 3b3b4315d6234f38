"""What somebody left in the middle of something, or unanswered: threads, and what of a run."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.events.catalogue import (
    ErrorInfo,
    MessageCompleted,
    MessagePosted,
    RequestCancelled,
    RunResumed,
    RunStarted,
    StepFailed,
)
from app.events.codec import new, readable
from app.events.envelope import NewEvent, thread_of
from app.events.lifecycle import TERMINAL
from app.events.store import EventStore
from app.projections.state import RunState, ThreadState
from app.projections.views import Views

__all__ = ["MAX_RESUMES", "left_open", "resumes", "unfinished_threads", "waiting_threads"]

MAX_RESUMES = 20
"""How often a handler is called again for one message: it may be what ends the process."""
RECENT_SECONDS = 24 * 3600.0
"""Messages that have waited for longer in a thread where nothing happened are left alone."""

_ENDS = ("run.completed", "run.failed", "run.stopped", "run.interrupted")


async def unfinished_threads(
    store: EventStore, views: Views | None, left_behind: Callable[[str, str], bool]
) -> list[str]:
    """Return the threads with an unfinished run that was left behind, oldest first.

    Args:
        store: The log.
        views: Read models; None reads the log.
        left_behind: Tells by run and node whether nobody makes it any longer.

    """
    if views is not None:
        await views.reached(await store.head())
        rows = [(row.thread, row.run, row.node) for row in await views.unfinished_runs()]
    else:
        rows = await _unfinished(store)
    return list(dict.fromkeys(thread for thread, run, node in rows if left_behind(run, node)))


async def waiting_threads(store: EventStore, views: Views | None) -> list[str]:
    """Return the threads in which messages may wait that nobody has begun to answer.

    Args:
        store: The log.
        views: Read models that have reached the head; None reads the log.

    """
    since = time.time_ns() - int(RECENT_SECONDS * 1e9)
    if views is not None:
        return await views.waiting_threads(since=since)
    found: dict[str, str] = {}  # thread -> its last message of a user, unless that was begun
    async for event in store.read(types=("message.posted", "run.started")):
        thread, payload = thread_of(event.stream) or "", readable(event)
        if isinstance(payload, MessagePosted) and payload.role == "user" and event.time >= since:
            found[thread] = payload.message
        elif isinstance(payload, RunStarted) and payload.message == found.get(thread, ""):
            del found[thread]
    return list(found)


async def _unfinished(store: EventStore) -> list[tuple[str, str, str]]:
    """Thread, run and node of all unfinished runs."""
    found: dict[str, tuple[str, str, str]] = {}
    async for event in store.read(types=("run.started", "run.resumed", *_ENDS)):
        thread, run = thread_of(event.stream), event.run or ""
        if event.type in _ENDS:
            found.pop(run, None)
        elif thread is not None:
            payload = readable(event)
            if isinstance(payload, RunStarted | RunResumed):
                found[run] = (thread, run, payload.node)
    return list(found.values())


async def resumes(store: EventStore, stream: str, run: RunState) -> int:
    """How often the run has been taken over."""
    found = store.read(after=run.version, stream=stream, types=("run.resumed",))
    return len([event async for event in found if event.run == run.id])


def left_open(state: ThreadState, run: RunState) -> list[NewEvent]:
    """End what a run has open, before its handler is called again and begins anew.

    Messages keep the text that they have, steps fail as interrupted, requests are cancelled.
    """
    events: list[NewEvent] = []
    for request in state.requests:
        if request.run == run.id and request.state not in TERMINAL:
            cancelled = RequestCancelled(request=request.id, text=request.text)
            events.append(new(cancelled, run=run.id, request=request.id))
    for message in state.messages:
        own = message.run == run.id and message.request not in state.index.requests
        if own and message.status == "streaming":
            completed = MessageCompleted(message=message.id, content=message.content)
            events.append(new(completed, run=run.id))
    gone = ErrorInfo(kind="interrupted", message="the server went away")
    events += [
        new(StepFailed(step=step.id, error=gone), run=run.id)
        for step in reversed(state.steps)  # those inside first
        if step.run == run.id and step.status == "running"
    ]
    return events

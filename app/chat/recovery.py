"""What somebody left in the middle of something: which threads, and what of a run."""

from __future__ import annotations

from collections.abc import Callable

from app.events.catalogue import (
    ErrorInfo,
    MessageCompleted,
    RequestCancelled,
    RunResumed,
    RunStarted,
    StepFailed,
)
from app.events.codec import decode, new
from app.events.envelope import NewEvent, thread_of
from app.events.lifecycle import TERMINAL
from app.events.store import EventStore
from app.projections.state import RunState, ThreadState
from app.projections.views import Views

__all__ = ["MAX_RESUMES", "left_open", "resumes", "unfinished_threads"]

MAX_RESUMES = 20
"""How often a handler is called again for one message: it may be what ends the process."""

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


async def _unfinished(store: EventStore) -> list[tuple[str, str, str]]:
    """Thread, run and node of all unfinished runs."""
    found: dict[str, tuple[str, str, str]] = {}
    async for event in store.read(types=("run.started", "run.resumed", *_ENDS)):
        thread, run = thread_of(event.stream), event.run or ""
        if event.type in _ENDS:
            found.pop(run, None)
        elif thread is not None:
            payload = decode(event)
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

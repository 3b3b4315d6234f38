"""The state of a conversation: a pure fold of its stream, at any point of the log.

Chat, transport and the command line read conversations through these three functions; the same
events give the same state everywhere, so what a client folds live equals what it would reload.
"""

from __future__ import annotations

from app.events.codec import PayloadError, decode
from app.events.envelope import Event, thread_stream
from app.events.store import EventStore
from app.projections.fold_requests import HANDLERS
from app.projections.model import (
    Feedback,
    MessageState,
    RequestState,
    RunState,
    StepState,
    ThreadState,
    derive_title,
)

__all__ = [
    "Feedback",
    "MessageState",
    "RequestState",
    "RunState",
    "StepState",
    "ThreadState",
    "apply",
    "derive_title",
    "empty",
    "load",
]

PAGE = 2000


def empty(thread: str) -> ThreadState:
    """Return the state of a conversation before its first event."""
    return ThreadState(id=thread)


def apply(state: ThreadState, event: Event) -> None:
    """Move ``state`` on by one event of its stream, in place.

    Never refuses an event: one of an unknown type, with a payload that cannot be read (redacted),
    about an unknown id, or illegal in its subject's state moves only the position.
    """
    if state.version == 0:
        state.created = event.time
    state.version, state.seq, state.updated = event.version, event.seq, event.time
    try:
        payload = decode(event)
    except (PayloadError, UnicodeDecodeError):
        return
    handler = HANDLERS.get(type(payload))  # type: ignore[arg-type]
    if handler is not None:
        handler(state, event, payload)


async def load(
    store: EventStore, thread: str, *, at: int | None = None, stream: str | None = None
) -> ThreadState | None:
    """Fold a conversation's events up to the log position ``at`` (all of them if None).

    ``stream`` names another one with the same types of events: that of a single request.
    Returns None if it has no event up to there.
    """
    stream, state = stream or thread_stream(thread), empty(thread)
    until = await store.stream_version(stream)
    while state.version < until:
        events = await store.fetch(after=state.version, until=until, stream=stream, limit=PAGE)
        for event in events:
            if at is not None and event.seq > at:
                return state if state.version else None
            apply(state, event)
        if not events:
            break
    return state if state.version else None

"""The state of a conversation: a pure fold of its stream, at any point of the log.

Chat, transport and the command line read conversations through these three functions; the same
events give the same state everywhere, so what a client folds live equals what it would reload.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.events.catalogue import Payload
from app.events.codec import readable
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
from app.projections.reading import read, type_name

__all__ = [
    "Feedback",
    "MessageState",
    "RequestState",
    "RunState",
    "StepState",
    "ThreadState",
    "apply",
    "apply_all",
    "derive_title",
    "empty",
    "load",
    "take",
]

PAGE = 2000

FEW = 200
"""Events whose payloads are in memory at once: more of them are young garbage to look through."""

_TYPES = frozenset(map(type_name, HANDLERS))


def empty(thread: str) -> ThreadState:
    """Return the state of a conversation before its first event."""
    return ThreadState(id=thread)


def apply(state: ThreadState, event: Event) -> None:
    """Move ``state`` on by one event of its stream, in place.

    Never refuses an event: one of an unknown type, with a payload that cannot be read (redacted),
    about an unknown id, or illegal in its subject's state moves only the position.
    """
    take(state, event, readable(event))


def take(state: ThreadState, event: Event, payload: Payload | None) -> None:
    """The same as `apply` where the payload was read before; None: it could not be."""
    _move(state, event, event)
    handler = HANDLERS.get(type(payload))
    if handler is not None:
        handler(state, event, payload)


def apply_all(state: ThreadState, events: Sequence[Event]) -> None:
    """Move ``state`` on by events of its stream in a row: as `apply` one by one, but sooner."""
    if not events:
        return
    _move(state, events[0], events[-1])
    for start in range(0, len(events), FEW):
        for event, payload in read(events[start : start + FEW], _TYPES):
            handler = HANDLERS.get(type(payload))
            if handler is not None:
                handler(state, event, payload)


def _move(state: ThreadState, first: Event, last: Event) -> None:
    if state.version == 0:
        state.created = first.time
    state.version, state.seq, state.updated = last.version, last.seq, last.time


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
        wanted = events if at is None else [event for event in events if event.seq <= at]
        apply_all(state, wanted)
        if len(wanted) < len(events) or not events:
            break
    return state if state.version else None

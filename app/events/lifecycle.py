"""The life of an engine request: the one table of legal transitions.

The stores apply it inside the appending transaction, so an illegal history cannot be committed.
"""

from __future__ import annotations

__all__ = ["FENCED", "INITIAL", "TERMINAL", "TRANSITIONS", "advance"]

INITIAL = "queued"
TERMINAL = frozenset({"finished", "failed", "cancelled"})

#: event type -> {state before: state after}; None is "does not exist yet".
TRANSITIONS: dict[str, dict[str | None, str]] = {
    "request.queued": {None: INITIAL},
    "request.claimed": {"queued": "claimed"},
    "request.started": {"claimed": "running"},
    "tokens.generated": {"running": "running"},
    "request.embedded": {"running": "running"},
    "request.preempted": {"running": "preempted"},
    "request.resumed": {"preempted": "running"},
    "request.finished": {"running": "finished"},
    "request.failed": dict.fromkeys(("queued", "claimed", "running", "preempted"), "failed"),
    "request.cancelled": dict.fromkeys(("queued", "claimed", "running", "preempted"), "cancelled"),
    "request.abandoned": dict.fromkeys(("claimed", "running", "preempted"), INITIAL),
}

#: Events that only the current holder of the request may write: they must carry its epoch.
FENCED = frozenset(
    {
        "request.started",
        "tokens.generated",
        "request.embedded",
        "request.preempted",
        "request.resumed",
        "request.finished",
        "request.abandoned",
    }
)


def advance(state: str | None, event: str) -> str | None:
    """Return the state after ``event``, or None if it is illegal in ``state``."""
    return TRANSITIONS[event].get(state)

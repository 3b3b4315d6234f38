"""Appends that no store takes."""

from __future__ import annotations

import re

import msgspec

from app.events.lifecycle import TRANSITIONS
from app.events.queue import queued_fields
from app.events.store import Append

__all__ = ["check"]

_STREAM = re.compile(r"[a-z][a-z0-9_]*(/[^\s/]{1,200})?")


def check(append: Append) -> None:
    """Refuse a malformed append before it is queued.

    Raises:
        ValueError: It has no events, a malformed stream name, or an event of a request's life
            without its request.

    """
    if not append.events:
        raise ValueError("an append needs at least one event")
    if _STREAM.fullmatch(append.stream) is None:
        raise ValueError(f"malformed stream name {append.stream!r}")
    for event in append.events:
        if event.type in TRANSITIONS:
            if not event.request:
                raise ValueError(f"{event.type} needs the envelope's request")
            if event.type == "request.queued":
                try:
                    queued_fields(event.data)
                except msgspec.DecodeError as error:
                    raise ValueError(f"malformed request.queued: {error}") from error

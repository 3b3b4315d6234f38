"""Server-sent events, framed as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["DONE", "HEADERS", "PING", "data", "event"]

DONE = b"data: [DONE]\n\n"
"""Ends a stream of chunks."""
PING = b": ping\n\n"
"""A comment that keeps proxies from closing a silent connection."""
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}

_encode = msgspec.json.Encoder().encode


def data(value: Any) -> bytes:
    """One frame; its value becomes JSON, which has no line breaks."""
    return b"data: %b\n\n" % _encode(value)


def event(value: dict[str, Any]) -> bytes:
    """One frame that is named by the value's ``type``."""
    return b"event: %b\ndata: %b\n\n" % (str(value["type"]).encode(), _encode(value))

"""Identifiers: UUIDv7 (RFC 9562 §5.7), so ids made later sort later."""

from __future__ import annotations

import os
import threading
import time
import uuid

__all__ = ["is_id", "public_id", "public_request", "public_thread", "uuid7"]

_lock = threading.Lock()
_last_ms = 0
_last_rand = 0


def uuid7() -> str:
    """Return a new UUIDv7 in canonical text form, monotonic within this process.

    Ids made in the same millisecond count up their 74 random bits (RFC 9562 §6.2, method 2).
    """
    global _last_ms, _last_rand
    with _lock:
        now = time.time_ns() // 1_000_000
        if now > _last_ms:
            _last_ms, _last_rand = (
                now,
                int.from_bytes(os.urandom(10)) >> 7,
            )  # 73 bits: room to count
        else:
            _last_rand += 1
        ms, rand = _last_ms, _last_rand
    high, low = rand >> 62, rand & ((1 << 62) - 1)
    value = (ms & ((1 << 48) - 1)) << 80 | 0x7 << 76 | (high & 0xFFF) << 64 | 0b10 << 62 | low
    return str(uuid.UUID(int=value))


def public_id(prefix: str, id: str, *more: str) -> str:
    """Id that clients of the API see: ``chatcmpl-`` and 32 hexadecimal digits of a request's.

    ``more`` are ids that stand behind it: that of a response has its conversation's.
    """
    return prefix + "".join((id, *more)).replace("-", "")


def public_request(text: str) -> str:
    """The request behind the id of an answer; any other text is given back as it is."""
    return (_ids(text) or [text])[0]


def public_thread(text: str) -> str | None:
    """The thread behind the id of a conversation, or of a response in one; None if it has none."""
    found = _ids(text)
    if text.startswith("conv_") and is_id(text[5:]):
        return text[5:]  # as handlers have it: conv_ and context.thread
    if text.startswith("conv_") and len(found) == 1:
        return found[0]
    return found[1] if len(found) == 2 else None


def _ids(text: str) -> list[str]:
    """One or two UUIDs at the end of a public id; none if it is something else."""
    digits = text.replace("-", "_").rpartition("_")[2]
    if len(digits) not in (32, 64):
        return []
    try:
        return [str(uuid.UUID(hex=digits[at : at + 32])) for at in range(0, len(digits), 32)]
    except ValueError:
        return []


def is_id(text: str) -> bool:
    """Whether ``text`` is a UUID in canonical lower-case form."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False

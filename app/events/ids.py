"""Identifiers: UUIDv7 (RFC 9562 §5.7), so ids made later sort later."""

from __future__ import annotations

import os
import threading
import time
import uuid

__all__ = ["is_id", "public_id", "public_request", "uuid7"]

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


def public_id(prefix: str, request: str) -> str:
    """Id of an answer, made of its request's: ``chatcmpl-`` and 32 hexadecimal digits."""
    return prefix + request.replace("-", "")


def public_request(text: str) -> str:
    """The request behind the id of an answer; any other text is given back as it is."""
    digits = text.replace("-", "_").rpartition("_")[2]
    if len(digits) != 32:
        return text
    try:
        return str(uuid.UUID(hex=digits))
    except ValueError:
        return text


def is_id(text: str) -> bool:
    """Whether ``text`` is a UUID in canonical lower-case form."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False

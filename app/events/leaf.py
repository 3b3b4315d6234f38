"""The leaf of an event: the hash that its row carries and that seals prove.

``leaf = SHA-256(header ‖ SHA-256(salt ‖ data))`` where the header is the JSON array of all other
columns. The inner hash hides the payload behind its salt, so a payload can be erased by law (its
inner hash stays) and the log still verifies.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec
from msgspec.structs import astuple

from app.events.envelope import Event

__all__ = ["SALT", "draw_salts", "leaf", "leaves"]

SALT = 16
"""Bytes of salt for each event."""

_encode = msgspec.json.Encoder().encode


def leaf(header: Sequence[Any], salt: bytes, data: bytes) -> bytes:
    """Leaf hash (32 bytes) of an event.

    Args:
        header: seq, stream, version, type, schema, time, actor, request, run, cause.
        salt: The event's salt.
        data: The stored payload.

    """
    return sha256(_encode(header) + sha256(salt + data).digest()).digest()


def draw_salts(count: int) -> list[bytes]:
    """Random salts, as many as asked."""
    pool = os.urandom(SALT * count)
    return [pool[i : i + SALT] for i in range(0, len(pool), SALT)]


def leaves(events: Sequence[Event], salts: Sequence[bytes]) -> list[bytes]:
    """Leaf hashes of events with their salts."""
    return [
        # An Event's fields are the header's in order, then data.
        sha256(_encode(astuple(event)[:-1]) + sha256(salt + event.data).digest()).digest()
        for event, salt in zip(events, salts, strict=True)
    ]

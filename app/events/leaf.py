"""The leaf of an event: the hash that its row carries and that seals prove.

``leaf = SHA-256(header ‖ SHA-256(salt ‖ data))`` where the header is the JSON array of all other
columns. The inner hash hides the payload behind its salt, so a payload can be erased by law (its
inner hash stays) and the log still verifies.

A row's *opening* leads to the inner hash: the salt (16 bytes), or the inner hash itself (32 bytes)
once the payload is erased and its salt with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec
from msgspec.structs import astuple

from app.events.envelope import Event

__all__ = ["DIGEST", "SALT", "draw_salts", "inner", "leaf", "leaves"]

SALT = 16
"""Bytes of salt for each event."""

DIGEST = 32
"""Bytes of the opening of an erased payload."""

_encode = msgspec.json.Encoder().encode


def inner(opening: bytes, data: bytes) -> bytes:
    """Inner hash (32 bytes) of a payload, or of the one that was erased."""
    return opening if len(opening) == DIGEST else sha256(opening + data).digest()


def leaf(header: Sequence[Any], opening: bytes, data: bytes) -> bytes:
    """Leaf hash (32 bytes) of an event.

    Args:
        header: seq, stream, version, type, schema, time, actor, request, run, cause.
        opening: The event's salt, or the inner hash of an erased payload.
        data: The stored payload; counts for nothing once erased.

    """
    return sha256(_encode(header) + inner(opening, data)).digest()


def draw_salts(count: int) -> list[bytes]:
    """Random salts, as many as asked."""
    pool = os.urandom(SALT * count)
    return [pool[i : i + SALT] for i in range(0, len(pool), SALT)]


def leaves(events: Sequence[Event], openings: Sequence[bytes]) -> list[bytes]:
    """Leaf hashes of events with their openings."""
    return [
        # An Event's fields are the header's in order, then data.
        sha256(_encode(astuple(event)[:-1]) + inner(opening, event.data)).digest()
        for event, opening in zip(events, openings, strict=True)
    ]

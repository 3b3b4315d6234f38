"""Operations: what callers ask of a store's writer, beside `app.events.store.Append`. Pure data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from app.events.envelope import Event
from app.events.moves import Move, Upload
from app.events.store import BY_PRIORITY, Append, Order

__all__ = ["Claim", "Erasure", "Expire", "Heartbeat", "Load", "Op", "Redact"]


class Claim(msgspec.Struct, frozen=True):
    """Claim queued requests; gives the claimed rows. ``lease`` is in seconds."""

    worker: str
    limit: int
    lease: float
    models: Sequence[str] | None
    order: Order = BY_PRIORITY


class Heartbeat(msgspec.Struct, frozen=True):
    """Extend a worker's leases; gives its fences."""

    worker: str
    lease: float


class Expire(msgspec.Struct, frozen=True):
    """Give back what ran out, or all that a worker holds; gives request ids."""

    worker: str | None
    reason: str


class Erasure(msgspec.Struct, frozen=True):
    """A payload to erase: ``left`` takes its place, ``opening`` (32 bytes) that of its salt."""

    seq: int
    stream: str
    version: int
    left: bytes
    opening: bytes


class Load(msgspec.Struct, frozen=True):
    """Write events as they are, positions and salts included, at the end of the log (import).

    ``erased`` are payloads of earlier events, whose records are loaded; ``commands`` took effect
    in the log that the events come from: by id, with seq, version and time.
    """

    events: Sequence[Event]
    salts: Sequence[bytes]
    erased: Sequence[Erasure] = ()
    commands: Mapping[str, tuple[int, int, int]] = {}


class Redact(msgspec.Struct, frozen=True):
    """Erase payloads, and append the record of it to the stream ``log``; gives its outcome.

    ``expected`` has the version of every stream that the erasures are in.
    """

    erasures: Sequence[Erasure]
    expected: Mapping[str, int]
    reason: str
    actor: str


Op = Append | Claim | Heartbeat | Expire | Load | Redact | Move | Upload

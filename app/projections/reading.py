"""Payloads of events, decoded once for everybody who folds them.

Most events of a log are batches of tokens, and most of them follow one of the same request. Such a
run is folded as one `Burst`: what is looked up for each event otherwise is looked up once.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from app.errors import EverlogError
from app.events.catalogue import CATALOGUE, Payload, TokensGenerated, event_type
from app.events.codec import FAULTS, PayloadError, Unknown, decode, decoder
from app.events.envelope import Event

__all__ = ["Burst", "Item", "Read", "Unreadable", "read", "type_name"]


class Unreadable(msgspec.Struct, frozen=True):
    """A payload that could not be decoded; it stops the projections that need it."""

    error: Exception


class Burst(msgspec.Struct, frozen=True):
    """Batches of tokens of one ``request``, with no other event of their stream between them."""

    request: str
    events: list[Event]
    batches: list[TokensGenerated]


Read = Payload | Unknown | Unreadable | Burst | None
Item = tuple[Event, Read]
"""An event with its payload, or the first of a `Burst` with all of it."""


def type_name(payload: type[Payload | Burst]) -> str:
    """Name of the type of events that are read as such payloads."""
    return event_type(TokensGenerated if issubclass(payload, Burst) else payload).type


def read(events: Sequence[Event], types: frozenset[str], *, strict: bool = False) -> list[Item]:
    """Decode the payloads of ``types``; those of others are None.

    The order of each stream is kept. Events of others may have come before the later ones of a
    burst, which stands in the place of its first.

    Raises:
        EverlogError: ``strict`` and a type or schema is unknown to this code.

    """
    items: list[Item] = []
    bursts: dict[str, Burst] = {}
    known = {type: decoder(type) for type in {event.type for event in events} & types}
    for event in events:
        stream, ready = event.stream, known.get(event.type)
        payload: Read
        try:
            if ready is None or ready[0] != event.schema:
                payload = _read(event, types, strict)
            else:
                payload = ready[1](event.data)
        except FAULTS:
            payload = _read(event, types, strict)  # said properly
        if type(payload) is not TokensGenerated:
            bursts.pop(stream, None)
            items.append((event, payload))
            continue
        burst = bursts.get(stream)
        if burst is None or burst.request != payload.request:
            burst = bursts[stream] = Burst(payload.request, [], [])
            items.append((event, burst))
        burst.events.append(event)
        burst.batches.append(payload)
    return items


def _read(event: Event, types: frozenset[str], strict: bool) -> Read:
    if event.type not in types:
        if strict and event.type not in CATALOGUE:
            raise _too_new(event)
        return None
    try:
        payload: Read = decode(event)
    except (PayloadError, UnicodeDecodeError) as error:
        payload = Unreadable(error)
    if strict and type(payload) is Unknown:
        raise _too_new(event)
    return payload


def _too_new(event: Event) -> EverlogError:
    return EverlogError(
        f"event {event.seq} ({event.type}, schema {event.schema}) is newer than this Everlog",
        hint="Upgrade Everlog, then rebuild again.",
    )

"""Payload structs to stored JSON and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from app.errors import EverlogError
from app.events.catalogue import CATALOGUE, Entry, Payload, event_type
from app.events.envelope import Event, NewEvent
from app.events.upcast import upcast

__all__ = ["FAULTS", "PayloadError", "Unknown", "decode", "decoder", "new", "readable"]

_encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode
_decoders: dict[str, msgspec.json.Decoder[Any]] = {}

FAULTS = (msgspec.DecodeError, ValueError, LookupError, TypeError)
"""What a malformed payload raises while it is decoded."""


class PayloadError(EverlogError):
    """A stored payload does not have the shape its type and schema promise."""


class Unknown(msgspec.Struct, frozen=True):
    """A payload this code does not know: its type is new, or its schema is newer.

    It is passed on, never dropped. ``data`` is the JSON value.
    """

    type: str
    schema: int
    data: Any


def new(
    payload: Payload,
    *,
    actor: str = "system",
    request: str | None = None,
    run: str | None = None,
    cause: str | None = None,
) -> NewEvent:
    """Wrap a payload as an event ready to append.

    Args:
        payload: A struct of the catalogue.
        actor: ``user:<id>``, ``handler:<name>``, ``engine:<worker>`` or ``system``.
        request: Engine request it belongs to; required for the ``request.*`` types.
        run: Run it belongs to.
        cause: Command id, or decimal ``seq``, of what led to it.

    """
    entry = event_type(payload)
    return NewEvent(
        type=entry.type,
        schema=entry.schema,
        data=_encode(payload),
        actor=actor,
        request=request,
        run=run,
        cause=cause,
    )


def decode(event: Event | NewEvent) -> Payload | Unknown:
    """Decode an event's payload, lifting old schemas.

    Returns:
        The catalogue's struct, or `Unknown` for types and schemas newer than this code.

    Raises:
        PayloadError: The payload is malformed, or an upcaster is missing.

    """
    entry = CATALOGUE.get(event.type)
    try:
        if entry is None or event.schema > entry.schema:
            return Unknown(event.type, event.schema, _decode_any(event.data))
        if event.schema < entry.schema:
            lifted = upcast(event.type, event.schema, entry.schema, _decode_any(event.data))
            return msgspec.convert(lifted, entry.payload)
        known = _decoders.get(event.type)
        if known is None or known.type is not entry.payload:
            known = _decoder(event.type, entry)
        payload: Payload = known.decode(event.data)
    except FAULTS as error:
        where = f" at seq {event.seq}" if isinstance(event, Event) else ""
        raise PayloadError(f"payload of {event.type}{where} is malformed: {error}") from error
    return payload


def readable(event: Event) -> Payload | None:
    """Payload of an event; None if it cannot be read (redacted), or is newer than this code."""
    try:
        payload = decode(event)
    except (PayloadError, UnicodeDecodeError):
        return None
    return None if isinstance(payload, Unknown) else payload


def decoder(type: str) -> tuple[int, Callable[[bytes], Payload]] | None:
    """Return the schema this code writes a type in, and what decodes it; None for unknown types.

    For loops over many events; anything but that schema, and all that raises one of `FAULTS`, is
    for `decode`.
    """
    entry = CATALOGUE.get(type)
    return (entry.schema, _decoder(type, entry).decode) if entry is not None else None


def _decoder(type: str, entry: Entry) -> msgspec.json.Decoder[Any]:
    known = _decoders.get(type)
    if known is None or known.type is not entry.payload:
        known = _decoders[type] = msgspec.json.Decoder(entry.payload)
    return known

"""Payloads of events, decoded once for everybody who folds them.

Most events of a log are batches of tokens, and most of them follow one of the same request. Such a
run is folded as one `Burst`: what is looked up for each event otherwise is looked up once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import msgspec

from app.errors import EverlogError
from app.events.catalogue import CATALOGUE, Payload, TokensGenerated, event_type
from app.events.codec import FAULTS, PayloadError, Unknown, decode, decoder
from app.events.envelope import Event

__all__ = ["Burst", "Item", "Read", "Unreadable", "read", "type_name"]

_TOKENS = event_type(TokensGenerated).type


class Unreadable(msgspec.Struct, frozen=True):
    """A payload that could not be decoded; it stops the projections that need it."""

    error: Exception


class Burst(msgspec.Struct, frozen=True):
    """Batches of tokens of one ``request``, with no other event of their stream between them.

    ``tokens`` is how many they have together. In a ``smooth`` burst each batch has some, and
    follows the one before it: of the same epoch, with the next number and index.
    """

    request: str
    events: list[Event]
    batches: list[TokensGenerated]
    tokens: int
    smooth: bool

    @classmethod
    def of(cls, events: list[Event], batches: list[TokensGenerated]) -> Burst:
        """Put the batches of these events together."""
        if len(batches) == 1:  # as most are that come live
            number = len(batches[0].tokens)
            return cls(batches[0].request, events, batches, number, number > 0)
        tokens = _smooth(batches)
        number = sum([len(data.tokens) for data in batches]) if tokens is None else tokens
        return cls(batches[0].request, events, batches, number, tokens is not None)

    def past(self, number: int) -> Burst | None:
        """What is new of it where batch ``number`` is the next to come: no batch counts twice."""
        if self.smooth and self.batches[0].batch >= number:
            return self
        new: list[tuple[Event, TokensGenerated]] = []
        for pair in zip(self.events, self.batches, strict=True):
            if pair[1].batch >= number:
                new.append(pair)
                number = pair[1].batch + 1
        return Burst.of([event for event, _ in new], [data for _, data in new]) if new else None


def _smooth(batches: list[TokensGenerated]) -> int | None:
    """How many tokens batches have that follow each other smoothly; None if they do not."""
    first = batches[0]
    request, epoch, batch, index = first.request, first.epoch, first.batch, first.index
    for data in batches:
        if data.batch != batch or data.index != index or data.epoch != epoch:
            return None
        tokens = len(data.tokens)
        if not tokens or data.request != request:
            return None
        batch += 1
        index += tokens
    return index - first.index


def type_name(payload: type[Payload | Burst]) -> str:
    """Name of the type of events that are read as such payloads."""
    return event_type(TokensGenerated if issubclass(payload, Burst) else payload).type


Read = Payload | Unknown | Unreadable | Burst | None
Item = tuple[Event, Read]
"""An event with its payload, or the first of a `Burst` with all of it."""

_Decoder = tuple[int, Callable[[bytes], Any]]
"""The schema it is for, and what decodes it."""


def read(events: Sequence[Event], types: frozenset[str], *, strict: bool = False) -> list[Item]:
    """Decode the payloads of ``types``; those of others are None.

    The order of each stream is kept. Events of others may have come before the later ones of a
    burst, which stands in the place of its first.

    Raises:
        EverlogError: ``strict`` and a type or schema is unknown to this code.

    """
    known = {type: decoder(type) for type in {event.type for event in events} & types}
    tokens = known.get(_TOKENS)
    items: list[Item] = []
    for event, batches in _parts(events, tokens):
        if batches is not None and tokens is not None:
            items += _bursts(batches, tokens, types, strict)
            continue
        ready = known.get(event.type)
        try:
            if ready is None or ready[0] != event.schema:
                payload = _read(event, types, strict)
            else:
                payload = ready[1](event.data)
        except FAULTS:
            payload = _read(event, types, strict)  # said properly
        items.append((event, payload))
    return items


def _parts(
    events: Sequence[Event], tokens: _Decoder | None
) -> list[tuple[Event, list[Event] | None]]:
    """Events, or in the place of the first of several batches of tokens of a stream all of them."""
    parts: list[tuple[Event, list[Event] | None]] = []
    schema = None if tokens is None else tokens[0]
    begun: dict[str, list[Event]] = {}
    for event in events:
        if event.type == _TOKENS and event.schema == schema:
            batches = begun.get(event.stream)
            if batches is None:
                batches = begun[event.stream] = []
                parts.append((event, batches))
            batches.append(event)
        else:
            begun.pop(event.stream, None)
            parts.append((event, None))
    return parts


def _bursts(
    events: list[Event], tokens: _Decoder, types: frozenset[str], strict: bool
) -> list[Item]:
    """Decode batches of tokens of one stream; those of one request in a row become a burst."""
    batch = tokens[1]
    try:
        batches = [batch(event.data) for event in events]
    except FAULTS:
        return _split(zip(events, [_read(event, types, strict) for event in events], strict=True))
    burst = Burst.of(events, batches)
    return [(events[0], burst)] if burst.smooth else _split(zip(events, batches, strict=True))


def _split(items: Iterable[tuple[Event, Any]]) -> list[Item]:
    """Put batches of one request in a row together."""
    found: list[Item] = []
    for request, group in groupby(items, _request):
        some = list(group)
        if request is None:
            found += some
        else:
            burst = Burst.of([event for event, _ in some], [data for _, data in some])
            found.append((some[0][0], burst))
    return found


def _request(item: tuple[Event, Any]) -> str | None:
    return item[1].request if isinstance(item[1], TokensGenerated) else None


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

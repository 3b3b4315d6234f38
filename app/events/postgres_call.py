"""Calls of the function ``append_batch``: how its arguments and its answer are coded. Pure."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from app.events.envelope import Event, NewEvent
from app.events.leaf import SALT
from app.events.lifecycle import FENCED, TRANSITIONS
from app.events.queue import queued_fields
from app.events.store import (
    ANY,
    Append,
    Appended,
    Closed,
    Conflict,
    Duplicate,
    Fenced,
    Illegal,
    Outcome,
)

__all__ = ["Call", "Guarded", "Names"]

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines

#: Text that stands in JSON as it is.
_PLAIN = re.compile(r"[ !#-\[\]-~]*").fullmatch

#: Place of each transition in the list below; claims come from `claim` alone.
_MOVE = {type: place for place, type in enumerate(TRANSITIONS, 1)}
_MOVES = _encode(
    [
        {}
        if type == "request.claimed"
        else {before or "": after for before, after in moves.items()}
        for type, moves in TRANSITIONS.items()
    ]
).decode()


class Guarded(msgspec.Struct, frozen=True):
    """An append of the queue's own, for one request under its epoch.

    ``kind`` is 1: claim it for ``worker`` for ``lease`` ns; 2: give it back if its lease ran out;
    3: give it back if ``worker`` holds it.
    """

    append: Append
    kind: int
    worker: str | None
    lease: int = 0


class _Answer(msgspec.Struct):
    x: list[int]
    y: list[int]
    code: list[int] | None
    text: list[str | None] | None
    streams: list[int] | None
    types: list[int] | None


_decode = msgspec.json.Decoder(_Answer).decode


class Names:
    """Ids of streams and event types that this process has met. They never change.

    Args:
        limit: Most streams remembered.

    """

    def __init__(self, limit: int = 65_536) -> None:
        self._limit = limit
        self.ids: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.types: dict[str, int] = {}
        self.type_names: dict[int, str] = {}

    def learn_stream(self, name: str, id: int) -> None:
        """Remember a stream."""
        if len(self.ids) >= self._limit:
            self.ids.clear()
            self.names.clear()
        self.ids[name], self.names[id] = id, name

    def learn_type(self, name: str, id: int) -> None:
        """Remember an event type."""
        self.types[name], self.type_names[id] = id, name


class _Places(dict[str, int]):
    """Place of each name in a list, from 1; a name not met yet is put at the end."""

    def __missing__(self, name: str) -> int:
        place = self[name] = len(self) + 1
        return place


class Call:
    """One call of ``append_batch``: its arguments, and the events once it is answered.

    Args:
        appends: What to append, in order.
        names: Known ids.
        now: Time of events that carry none, ns since the epoch.

    """

    def __init__(self, appends: Sequence[Append | Guarded], names: Names, now: int) -> None:
        self._appends = [a.append if isinstance(a, Guarded) else a for a in appends]
        self._names, self._now = names, now
        self._streams, self._types = _Places(), _Places()
        self._requests, self._commands = _Places(), _Places()
        self._exact: set[str] = set()  # streams whose version decides
        self._guards = [a for a in appends if isinstance(a, Guarded)]
        self._heads = [
            (
                self._streams[append.stream],
                len(append.events),
                append.expected,
                0 if append.command is None else self._commands[append.command],
                0 if append.fence is None else self._requests[append.fence.request],
                0 if append.fence is None else append.fence.epoch,
            )
            for append in self._appends
        ]
        self._exact.update(a.stream for a in self._appends if a.expected != ANY)
        self._new: list[NewEvent] = [event for a in self._appends for event in a.events]
        self._times = [event.time or now for event in self._new]
        self._moves = self._find_moves()

    def _find_moves(self) -> list[tuple[int, int, bool, int]] | None:
        """Owner, move, fenced and place of the queued fields for each event; None: no moves."""
        self._queued: list[tuple[int, str | None, int | None, str]] = []
        if self._guards or not any(event.type in _MOVE for event in self._new):
            return None  # the queue's own appends move their requests by their kind
        return [self._move(event) for event in self._new]

    def _move(self, event: NewEvent) -> tuple[int, int, bool, int]:
        move = _MOVE.get(event.type, 0)
        if not move or not event.request:
            return (0, 0, False, 0)
        queued = 0
        if event.type == "request.queued":
            fields = queued_fields(event.data)
            tenant = fields.tenant or event.actor
            self._queued.append((fields.priority, fields.model, fields.deadline, tenant))
            queued = len(self._queued)
        return (self._requests[event.request], move, event.type in FENCED, queued)

    def arguments(
        self, writer: str, number: int, now: int | None, versions: Mapping[str, int]
    ) -> list[Any]:
        """Arguments of ``append_batch``.

        Args:
            writer: Who sends it.
            number: Which of its batches it is.
            now: The leases' clock, ns since the epoch; None for the server's.
            versions: Versions of streams as far as known.

        """
        streams, names, events = list(self._streams), self._names, self._new
        kinds = [self._types[event.type] for event in events]
        types, actors = list(self._types), _Places()
        acting = [actors[event.actor] for event in events]
        return [
            writer,
            number,
            now,
            self._now,
            len(self._appends),
            _literal(streams),
            _literal([names.ids.get(name, 0) for name in streams]),
            _literal([-1 if name in self._exact else versions.get(name, -1) for name in streams]),
            _literal(_heads(streams)),
            _literal(types),
            _literal([names.types.get(name, 0) for name in types]),
            _literal(list(self._requests)),
            _literal(list(self._commands)),
            _literal(list(actors)),
            _MOVES,
            *self._append_columns(),
            *self._places(),
            _unless_all(kinds, 1),
            _unless_all([event.schema for event in events], 1),
            _unless_all(self._times, self._now),
            _unless_all(acting, 1),
            _unless_all([event.request for event in events], None),
            _unless_all([event.run for event in events], None),
            _unless_all([event.cause for event in events], None),
            *_joined([event.data for event in events]),
            os.urandom(SALT * len(events)),
            self._tails(),
            *map(_literal, _columns(self._moves or (), 4)),
            *map(_literal, _columns(self._queued, 4)),
        ]

    def _append_columns(self) -> list[str]:
        """Lists of appends; those that say nothing are empty."""
        streams, counts, expected, commands, fences, epochs = _columns(self._heads, 6)
        kinds, workers, leases = _columns([(g.kind, g.worker, g.lease) for g in self._guards], 3)
        return [
            _literal([] if streams == list(range(1, len(streams) + 1)) else streams),
            _unless_all(counts, 1),
            _unless_all(expected, ANY),
            _unless_all(commands, 0),
            _unless_all(fences, 0),
            _unless_all(epochs, 0),
            _literal(kinds),
            _literal(workers),
            _literal(leases),
        ]

    def _places(self) -> tuple[str, str]:
        """Each event's append, and its place in it from 0; empty if every append has one event."""
        counts = [len(append.events) for append in self._appends]
        if len(self._new) == len(counts):
            return "{}", "{}"
        places = [place for place, count in enumerate(counts, 1) for _ in range(count)]
        return _literal(places), _literal([step for count in counts for step in range(count)])

    def _tails(self) -> str:
        """The JSON of each header after its version, a line each: JSON has no other line ends."""
        lines = _encode_lines(
            [
                (e.type, e.schema, time, e.actor, e.request, e.run, e.cause)
                for e, time in zip(self._new, self._times, strict=True)
            ]
        )
        return lines[:-1].decode().replace("[", ",", 1).replace("\n[", "\n,")

    def outcomes(self, answer: str) -> tuple[list[Outcome], list[Event]]:
        """What became of each append, and the events written, in order of seq."""
        said = _decode(answer)
        self._learn(said)
        codes, texts = said.code or itertools.repeat(0), said.text or itertools.repeat(None)
        outcomes: list[Outcome] = []
        written: list[Event] = []
        first = 0
        for append, x, y, code, text in zip(
            self._appends, said.x, said.y, codes, texts, strict=False
        ):
            count = len(append.events)
            if code == 0:
                outcomes.append(Appended(x, x + count - 1, y))
                self._write(append, first, x, y - count + 1, written)
            else:
                outcomes.append(_REFUSALS[code](self._new, x, y, text))
            first += count
        return outcomes, written

    def _write(
        self, append: Append, first: int, seq: int, version: int, written: list[Event]
    ) -> None:
        stream = append.stream
        for at, e in enumerate(append.events):
            time = self._times[first + at]
            head = (seq + at, stream, version + at, e.type, e.schema, time)
            written.append(Event(*head, e.actor, e.request, e.run, e.cause, e.data))

    def _learn(self, said: _Answer) -> None:
        names = self._names
        for name, id in zip(self._streams, said.streams or (), strict=False):
            if id and name not in names.ids:
                names.learn_stream(name, id)
        for name, id in zip(self._types, said.types or (), strict=False):
            if id and name not in names.types:
                names.learn_type(name, id)


def _heads(streams: list[str]) -> list[str]:
    """Names as they stand in JSON, without quotes; none if that is what they are anyway."""
    if all(map(_PLAIN, streams)):
        return []
    return [_encode(name).decode()[1:-1] for name in streams]


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Rows as columns."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]


def _literal(values: list[Any]) -> str:
    """A list of texts, numbers and None as an array literal of Postgres.

    That is JSON with other brackets, but for what stands behind a backslash.
    """
    text = _encode(values).decode()
    if "\\" in text:
        text = ",".join(map(_element, values)).join("[]")
    return f"{{{text[1:-1]}}}"


def _element(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return _encode(value).decode()


def _unless_all(values: list[Any], default: Any) -> str:
    """The values; none if all are the default."""
    return _literal(values) if values.count(default) < len(values) else "{}"


def _joined(parts: list[bytes]) -> tuple[bytes, str, str]:
    """Parts in a row; where each starts, from 1; and how long it is."""
    sizes = list(map(len, parts))
    starts = list(itertools.accumulate(sizes[:-1], initial=1))
    return b"".join(parts), _literal(starts), _literal(sizes)


#: By code: from events, two numbers and a text to an outcome.
_REFUSALS: dict[int, Callable[[list[NewEvent], int, int, str | None], Outcome]] = {
    1: lambda events, x, y, text: Conflict(y),
    2: lambda events, x, y, text: Fenced(x),
    3: lambda events, x, y, text: Closed(text or ""),
    4: lambda events, x, y, text: Illegal(events[x - 1].type, text),
    5: lambda events, x, y, text: Duplicate(x, y),
}

"""All SQL of the Postgres store, and how arguments and answer of ``append_batch`` are coded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from app.events.envelope import Event, NewEvent
from app.events.leaf import draw_salts
from app.events.lifecycle import FENCED, TRANSITIONS
from app.events.queue import queued_fields
from app.events.store import (
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

SELECT_LOG_ROW = "SELECT incarnation FROM log"

INSERT_LOG = """
    INSERT INTO log (id, incarnation, created) VALUES (1, $1, log_clock())
    ON CONFLICT (id) DO NOTHING"""

ADOPT = "UPDATE log SET incarnation = $1 RETURNING id"

ADOPT_IF_EMPTY = """
    UPDATE log SET incarnation = $1 WHERE NOT EXISTS (SELECT FROM event) RETURNING id"""

ERASE = """
    UPDATE event SET data = e.data, salt = e.salt
    FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::bigint[], $5::integer[])
        AS e(data, salt, seq, stream_id, version)
    WHERE event.seq = e.seq AND event.stream_id = e.stream_id AND event.version = e.version"""

SELECT_HEAD = "SELECT coalesce(max(seq), 0) FROM event"

SELECT_LAST_STREAM = "SELECT coalesce(max(id), 0) FROM stream"

SELECT_TYPES = "SELECT name, id FROM event_type"

SELECT_STREAM_IDS = "SELECT name, id FROM stream WHERE name = ANY ($1::text[])"

SELECT_STREAM_NAMES = "SELECT id, name FROM stream WHERE id = ANY ($1::bigint[])"

SELECT_VERSION = """
    SELECT coalesce(max(version), 0) FROM event
    WHERE stream_id = (SELECT id FROM stream WHERE name = $1)"""

SELECT_VERSIONS = """
    SELECT s.name, s.id, coalesce((SELECT max(version) FROM event WHERE stream_id = s.id), 0)
    FROM stream s WHERE s.name = ANY ($1::text[])"""

EVENT_COLUMNS = "seq, stream_id, version, type_id, schema, time, actor, request, run, cause, data"

# No joins: names of streams and types are known here, or asked for together.
SELECT_LOG = f"""
    SELECT {EVENT_COLUMNS} FROM event
    WHERE seq > $1 AND seq <= $2 AND ($4::integer[] IS NULL OR type_id = ANY ($4))
    ORDER BY seq LIMIT $3"""

SELECT_IN_STREAM = f"""
    SELECT {EVENT_COLUMNS} FROM event
    WHERE stream_id = $5 AND version > $1 AND version <= $2
        AND ($4::integer[] IS NULL OR type_id = ANY ($4))
    ORDER BY version LIMIT $3"""

SELECT_ROWS = f"""
    SELECT {EVENT_COLUMNS}, salt, leaf FROM event WHERE seq > $1 ORDER BY seq LIMIT $2"""

SELECT_LEAVES = "SELECT leaf FROM event WHERE seq > $1 AND seq <= $2 ORDER BY seq"

REQUEST_COLUMNS = "id, stream, state, epoch, worker, until, priority, queued, model, deadline, run"

_OPEN = "state NOT IN ('finished', 'failed', 'cancelled')"

SELECT_OPEN_REQUESTS = f"SELECT {REQUEST_COLUMNS} FROM request WHERE {_OPEN} ORDER BY queued"

SELECT_REQUESTS = f"SELECT {REQUEST_COLUMNS} FROM request WHERE id = ANY ($1::text[])"

SELECT_COMMANDS = "SELECT id, seq, version FROM command WHERE id = ANY ($1::text[])"

SELECT_CLAIMABLE = f"""
    SELECT {REQUEST_COLUMNS} FROM request
    WHERE {_OPEN} AND state = 'queued' AND (model IS NULL OR model = ANY ($1::text[]))
    ORDER BY priority DESC, queued LIMIT $2"""

SELECT_LOST = f"""
    SELECT {REQUEST_COLUMNS} FROM request
    WHERE {_OPEN} AND state IN ('claimed', 'running', 'preempted')
        AND CASE WHEN $1::text IS NULL THEN until < coalesce($2::bigint, log_clock())
            ELSE worker = $1 END
    ORDER BY queued"""

HEARTBEAT = f"""
    UPDATE request SET until = coalesce($3::bigint, log_clock()) + $2
    WHERE {_OPEN} AND worker = $1 RETURNING id, epoch, queued"""

SELECT_LEASES = f"""
    SELECT id, stream, state, epoch, worker, until FROM request
    WHERE ($1::text IS NULL OR stream = $1) AND (NOT $2::boolean OR {_OPEN}) ORDER BY queued"""

BEAT = """
    INSERT INTO node (name, until) VALUES ($1, coalesce($3::bigint, log_clock()) + $2)
    ON CONFLICT (name) DO UPDATE SET until = excluded.until"""

LEAVE = "DELETE FROM node WHERE name = $1"

SELECT_NODES = "SELECT name FROM node WHERE until > coalesce($1::bigint, log_clock())"

UPSERT_REQUEST = f"""
    INSERT INTO request ({REQUEST_COLUMNS})
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT (id) DO UPDATE SET state = excluded.state, epoch = excluded.epoch,
        worker = excluded.worker, until = excluded.until"""

SELECT_REMEMBERED = """
    SELECT id, seq, version, time FROM command WHERE id > $1 ORDER BY id LIMIT $2"""

PRUNE_COMMANDS = "DELETE FROM command WHERE time < $1"

PRUNE_BATCHES = "DELETE FROM batch WHERE time < $1"

PRUNE_NODES = "DELETE FROM node WHERE until < $1"

#: Its forty arguments are those of `Call.arguments`.
APPEND_BATCH = f"SELECT append_batch({', '.join(f'${place}' for place in range(1, 41))})"

_encode = msgspec.json.Encoder().encode

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
    code: list[int]
    x: list[int]
    y: list[int]
    text: list[str | None]
    streams: list[int]
    types: list[int]


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
        self._rows: list[tuple[Any, ...]] = []  # of appends
        self._events: list[tuple[Any, ...]] = []
        self._new: list[NewEvent] = []
        self._queued: list[tuple[int, str | None, int | None]] = []
        self._salts = draw_salts(sum(len(append.events) for append in self._appends))
        for given in appends:
            self._add(given)

    def _add(self, given: Append | Guarded) -> None:
        append = given.append if isinstance(given, Guarded) else given
        kind, worker, lease = 0, None, 0
        if isinstance(given, Guarded):
            kind, worker, lease = given.kind, given.worker, given.lease
        stream, fence = self._streams[append.stream], append.fence
        first = len(self._events) + 1
        head = f",{_encode(append.stream).decode()},"
        for event in append.events:
            self._add_event(event, stream, head, checked=kind == 0)
        self._rows.append(
            (
                kind,
                stream,
                append.expected,
                0 if append.command is None else self._commands[append.command],
                0 if fence is None else self._requests[fence.request],
                0 if fence is None else fence.epoch,
                first,
                len(self._events),
                worker,
                lease,
            )
        )

    def _add_event(self, event: NewEvent, stream: int, head: str, *, checked: bool) -> None:
        time = event.time or self._now
        rest = (event.type, event.schema, time, event.actor, event.request, event.run, event.cause)
        salt = self._salts[len(self._events)]
        move = _MOVE.get(event.type, 0) if checked else 0
        queued = 0
        if move and event.type == "request.queued":
            fields = queued_fields(event.data)
            self._queued.append((fields.priority, fields.model, fields.deadline))
            queued = len(self._queued)
        self._new.append(event)
        self._events.append(
            (
                stream,
                self._types[event.type],
                event.schema,
                time,
                event.actor,
                event.request,
                event.run,
                event.cause,
                event.data,
                salt,
                sha256(salt + event.data).digest(),
                head,
                "," + _encode(rest).decode()[1:],
                self._requests[event.request] if move and event.request else 0,
                move,
                event.type in FENCED,
                queued,
            )
        )

    def arguments(self, writer: str, number: int, now: int | None) -> list[Any]:
        """Arguments of ``append_batch``; ``now`` is the leases' clock, None for the server's."""
        streams, types = list(self._streams), list(self._types)
        ids, type_ids = self._names.ids, self._names.types
        return [
            writer,
            number,
            now,
            streams,
            [ids.get(name, 0) for name in streams],
            types,
            [type_ids.get(name, 0) for name in types],
            list(self._requests),
            list(self._commands),
            _MOVES,
            *_columns(self._rows, 10),
            *_columns(self._events, 17),
            *_columns(self._queued, 3),
        ]

    def outcomes(self, answer: str) -> tuple[list[Outcome], list[Event]]:
        """What became of each append, and the events written, in order of seq."""
        said = _decode(answer)
        for name, id in zip(self._streams, said.streams, strict=True):
            if id:
                self._names.learn_stream(name, id)
        for name, id in zip(self._types, said.types, strict=True):
            if id:
                self._names.learn_type(name, id)
        outcomes: list[Outcome] = []
        written: list[Event] = []
        for append, row, code, x, y, text in zip(
            self._appends, self._rows, said.code, said.x, said.y, said.text, strict=True
        ):
            if code == 0:
                outcomes.append(Appended(x, x + len(append.events) - 1, y))
                written += self._written(append, row[6], x, y)
            else:
                outcomes.append(_REFUSALS[code](self._new, x, y, text))
        return outcomes, written

    def _written(self, append: Append, first: int, seq: int, version: int) -> list[Event]:
        version -= len(append.events) - 1
        return [
            Event(
                seq=seq + at,
                stream=append.stream,
                version=version + at,
                type=event.type,
                schema=event.schema,
                time=event.time or self._now,
                actor=event.actor,
                request=event.request,
                run=event.run,
                cause=event.cause,
                data=event.data,
            )
            for at, event in enumerate(append.events)
        ]


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Rows as columns."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]


#: By code: from events, two numbers and a text to an outcome.
_REFUSALS: dict[int, Callable[[list[NewEvent], int, int, str | None], Outcome]] = {
    1: lambda events, x, y, text: Conflict(y),
    2: lambda events, x, y, text: Fenced(x),
    3: lambda events, x, y, text: Closed(text or ""),
    4: lambda events, x, y, text: Illegal(events[x - 1].type, text),
    5: lambda events, x, y, text: Duplicate(x, y),
}

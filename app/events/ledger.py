"""The ledger: decides what a batch writes. Pure: no I/O, no clock of its own.

It caches the end of the log (head, stream versions, open requests) for the one process that
writes. Before a batch the store asks `missing`, looks those keys up and calls `learn`; `plan` then
decides every operation, each for itself, and moves the cache on. If the transaction fails the
store calls `restore` with what the database really holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from app.events.catalogue import LogRedacted, Payload, RequestAbandoned, RequestClaimed
from app.events.clock import steady
from app.events.codec import new
from app.events.envelope import Event, NewEvent
from app.events.leaf import draw_salts
from app.events.lifecycle import TERMINAL, TRANSITIONS
from app.events.moves import Move, Moved, Upload
from app.events.ops import Claim, Erasure, Expire, Heartbeat, Load, Op, Redact
from app.events.queue import HELD, Request, claimable, fold, judge
from app.events.store import ANY, Append, Appended, Conflict, Duplicate, Fence, Outcome, StoreError

__all__ = ["Batch", "Found", "Ledger", "Missing", "State"]

LOG = "log"
"""Stream of what the log says of itself."""

#: Most streams whose versions are cached.
MAX_STREAMS = 65_536
#: Most commands and ended requests remembered; older ones are looked up.
MAX_RECENT = 8_192


class State(msgspec.Struct):
    """The end of the log as the database holds it."""

    head: int = 0
    last_stream: int = 0
    types: dict[str, int] = msgspec.field(default_factory=dict)
    requests: list[Request] = msgspec.field(default_factory=list)


class Missing(msgspec.Struct):
    """Keys to look up before a batch can be planned."""

    streams: set[str] = msgspec.field(default_factory=set)
    requests: set[str] = msgspec.field(default_factory=set)
    commands: set[str] = msgspec.field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.streams or self.requests or self.commands)


class Found(msgspec.Struct):
    """Answer to `Missing`; what is absent does not exist."""

    streams: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict)  # id, version
    requests: dict[str, Request] = msgspec.field(default_factory=dict)
    commands: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict)  # seq, version


class Batch(msgspec.Struct):
    """What one transaction writes, and the results of its operations."""

    results: list[object] = msgspec.field(default_factory=list)
    events: list[Event] = msgspec.field(default_factory=list)
    salts: list[bytes] = msgspec.field(default_factory=list)  # parallel to events
    stream_ids: list[int] = msgspec.field(default_factory=list)  # parallel to events
    type_ids: list[int] = msgspec.field(default_factory=list)  # parallel to events
    streams: list[tuple[int, str]] = msgspec.field(default_factory=list)  # new ones
    types: list[tuple[int, str]] = msgspec.field(default_factory=list)  # new ones
    requests: dict[str, Request] = msgspec.field(default_factory=dict)
    commands: dict[str, tuple[int, int, int]] = msgspec.field(default_factory=dict)
    erased: list[tuple[Erasure, int]] = msgspec.field(default_factory=list)  # with stream id
    moved: list[Moved] = msgspec.field(default_factory=list)
    uploads: list[Upload] = msgspec.field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        written = self.events or self.requests or self.commands or self.erased
        return not (written or self.uploads)


class _Stream:
    __slots__ = ("committed", "id", "version")

    def __init__(self, id: int, version: int) -> None:
        self.id = id
        self.version = version
        self.committed = version


class Ledger:
    """Cached end of the log, and the decisions made from it."""

    def __init__(self) -> None:
        self.restore(State())

    def restore(self, state: State) -> None:
        """Forget everything and start from ``state``."""
        self.head = state.head
        self.committed = state.head
        self._last_stream = state.last_stream
        self._last_time = 0
        self._streams: dict[str, _Stream] = {}
        self._types = dict(state.types)
        self._requests: dict[str, Request | None] = {row.id: row for row in state.requests}
        self._open: dict[str, Request] = {row.id: row for row in state.requests}
        self._commands: dict[str, tuple[int, int] | None] = {}

    # --------------------------------------------------------------------------- looking up

    def version(self, stream: str) -> int | None:
        """Committed version of a stream; None if it is not cached."""
        cached = self._streams.get(stream)
        return cached.committed if cached is not None else None

    def missing(self, ops: Iterable[Op]) -> Missing:
        """Keys that `plan` needs and the cache lacks."""
        missing = Missing()
        streams, requests = self._streams, self._requests
        for op in ops:
            if isinstance(op, Append):
                if op.stream not in streams:
                    missing.streams.add(op.stream)
                if op.command is not None and op.command not in self._commands:
                    missing.commands.add(op.command)
                if op.fence is not None and op.fence.request not in requests:
                    missing.requests.add(op.fence.request)
                for event in op.events:
                    if event.type in TRANSITIONS and event.request not in requests:
                        missing.requests.add(event.request or "")
            elif isinstance(op, Load):
                missing.streams.update(e.stream for e in op.events if e.stream not in streams)
                missing.streams.update(e.stream for e in op.erased if e.stream not in streams)
                missing.commands.update(op.commands.keys() - self._commands.keys())
                missing.requests.update(
                    e.request
                    for e in op.events
                    if e.type in TRANSITIONS and e.request and e.request not in requests
                )
            elif isinstance(op, Redact):
                missing.streams.update({LOG, *op.expected} - streams.keys())
            elif isinstance(op, Move):
                missing.streams.update({LOG, *op.streams} - streams.keys())
            elif isinstance(op, Upload):
                continue
            else:
                missing.streams.update(
                    row.stream for row in self._open.values() if row.stream not in streams
                )
        return missing

    def learn(self, missing: Missing, found: Found) -> None:
        """Cache the answer to `missing`."""
        for name in missing.streams:
            id, version = found.streams.get(name, (0, 0))
            self._streams[name] = _Stream(id, version)
        for request in missing.requests:
            self._requests[request] = found.requests.get(request)
        for command in missing.commands:
            self._commands[command] = found.commands.get(command)

    # ------------------------------------------------------------------------------ deciding

    def plan(self, ops: Sequence[Op], now: int) -> Batch:
        """Decide every operation in order. ``now`` is nanoseconds since the epoch."""
        now = self._last_time = steady(now, self._last_time)
        batch = Batch()
        for op in ops:
            if isinstance(op, Append):
                result: object = self._append(op, now, batch)
            elif isinstance(op, Claim):
                result = self._claim(op, now, batch)
            elif isinstance(op, Heartbeat):
                result = self._heartbeat(op, now, batch)
            elif isinstance(op, Expire):
                result = self._expire(op, now, batch)
            elif isinstance(op, Redact):
                result = self._redact(op, now, batch)
            elif isinstance(op, Move):
                result = self._move(op, now, batch)
            elif isinstance(op, Upload):
                batch.uploads.append(op)
                result = None
            else:
                result = self._load(op, batch)
            batch.results.append(result)
        _salt(batch)
        return batch

    def commit(self, batch: Batch) -> None:
        """The batch is durable: what it wrote may be seen."""
        self.committed = self.head
        for name in {event.stream for event in batch.events}:
            stream = self._streams[name]
            stream.committed = stream.version
        self._trim()

    def _append(self, append: Append, now: int, batch: Batch) -> Outcome:
        command = append.command
        if command is not None:
            done = self._commands.get(command)
            if done is not None:
                return Duplicate(*done)
        stream = self._streams[append.stream]
        if append.expected != ANY and append.expected != stream.version:
            return Conflict(stream.version)
        verdict = judge(append, self.head + 1, self._requests.get)
        if not isinstance(verdict, dict):
            return verdict
        first = self.head + 1
        self._write(append.stream, stream, append.events, now, batch)
        for row in verdict.values():
            self._set(row, batch)
        if command is not None:
            self._commands[command] = (self.head, stream.version)
            batch.commands[command] = (self.head, stream.version, now)
        return Appended(first, self.head, stream.version)

    def _claim(self, claim: Claim, now: int, batch: Batch) -> list[Request]:
        until = now + int(claim.lease * 1e9)
        claimed = []
        for row in claimable(self._open.values(), claim):
            row = msgspec.structs.replace(
                row, state="claimed", epoch=row.epoch + 1, worker=claim.worker, until=until
            )
            payload = RequestClaimed(request=row.id, epoch=row.epoch, worker=claim.worker)
            self._transition(row, payload, f"engine:{claim.worker}", now, batch)
            claimed.append(row)
        return claimed

    def _heartbeat(self, beat: Heartbeat, now: int, batch: Batch) -> list[Fence]:
        until = now + int(beat.lease * 1e9)
        held = [row for row in self._open.values() if row.worker == beat.worker]
        for row in held:
            self._set(msgspec.structs.replace(row, until=until), batch)
        return [Fence(row.id, row.epoch) for row in held]

    def _expire(self, expire: Expire, now: int, batch: Batch) -> list[str]:
        lost = [
            row
            for row in self._open.values()
            if row.state in HELD
            and (row.worker == expire.worker if expire.worker else (row.until or 0) < now)
        ]
        for row in lost:
            payload = RequestAbandoned(
                request=row.id, epoch=row.epoch, worker=row.worker or "", reason=expire.reason
            )
            free = msgspec.structs.replace(row, state="queued", worker=None, until=None)
            self._transition(free, payload, "system", now, batch)
        return [row.id for row in lost]

    def _load(self, load: Load, batch: Batch) -> int | StoreError:
        head = self.head
        versions: dict[str, int] = {}
        rows: dict[str, Request | None] = {}
        for event in load.events:  # check all before anything is written
            version = versions.get(event.stream, self._streams[event.stream].version)
            if event.seq != head + 1 or event.version != version + 1:
                return StoreError(f"event {event.seq} does not follow seq {head}")
            head, versions[event.stream] = event.seq, event.version
            if event.type in TRANSITIONS and event.request:
                row = rows.get(event.request, self._requests.get(event.request))
                try:
                    rows[event.request] = fold(row, event)
                except (ValueError, msgspec.DecodeError) as error:
                    return StoreError(f"event {event.seq}: {error}")
        _salt(batch)
        for event in load.events:
            self._place(event, self._streams[event.stream], batch)
        batch.salts += load.salts
        for changed in rows.values():
            if changed is not None:
                self._set(changed, batch)
        batch.erased += [(e, self._streams[e.stream].id) for e in load.erased]
        for id, command in load.commands.items():
            if self._commands.get(id) is None:
                self._commands[id] = command[:2]
                batch.commands[id] = command
        return self.head

    def _redact(self, redact: Redact, now: int, batch: Batch) -> Appended | Conflict:
        for name, version in redact.expected.items():
            if self._streams[name].version != version:
                return Conflict(self._streams[name].version)
        record = LogRedacted(
            seqs=[erasure.seq for erasure in redact.erasures],
            left=[sha256(erasure.left).hexdigest() for erasure in redact.erasures],
            reason=redact.reason,
        )
        stream = self._streams[LOG]
        self._write(LOG, stream, (new(record, actor=redact.actor),), now, batch)
        batch.erased += [(e, self._streams[e.stream].id) for e in redact.erasures]
        return Appended(self.head, self.head, stream.version)

    def _move(self, move: Move, now: int, batch: Batch) -> Appended | StoreError:
        for place in move.remove:  # heads are found by what is in the table
            if place.version >= self._streams[place.stream].version or place.seq >= self.head:
                return StoreError(f"event {place.seq} is the last of {place.stream}: it stays")
        stream = self._streams[LOG]
        self._write(LOG, stream, (move.record,), now, batch)
        ids = {name: self._streams[name].id for name in move.streams}
        batch.moved.append(Moved(move, ids, dict(self._types)))
        return Appended(self.head, self.head, stream.version)

    # ------------------------------------------------------------------------------- writing

    def _transition(
        self, row: Request, payload: Payload, actor: str, now: int, batch: Batch
    ) -> None:
        event = new(payload, actor=actor, request=row.id, run=row.run, cause=str(row.queued))
        self._write(row.stream, self._streams[row.stream], (event,), now, batch)
        self._set(row, batch)

    def _set(self, row: Request, batch: Batch) -> None:
        batch.requests[row.id] = self._requests[row.id] = row
        if row.state in TERMINAL:
            self._open.pop(row.id, None)
        else:
            self._open[row.id] = row

    def _write(
        self, name: str, stream: _Stream, events: Sequence[NewEvent], now: int, batch: Batch
    ) -> None:
        for e in events:
            event = Event(
                seq=self.head + 1,
                stream=name,
                version=stream.version + 1,
                type=e.type,
                schema=e.schema,
                time=e.time or now,
                actor=e.actor,
                request=e.request,
                run=e.run,
                cause=e.cause,
                data=e.data,
            )
            self._place(event, stream, batch)

    def _place(self, event: Event, stream: _Stream, batch: Batch) -> None:
        if stream.id == 0:
            self._last_stream += 1
            stream.id = self._last_stream
            batch.streams.append((stream.id, event.stream))
        type_id = self._types.get(event.type)
        if type_id is None:
            type_id = self._types[event.type] = len(self._types) + 1
            batch.types.append((type_id, event.type))
        self.head = event.seq
        stream.version = event.version
        batch.events.append(event)
        batch.stream_ids.append(stream.id)
        batch.type_ids.append(type_id)

    def _trim(self) -> None:
        """Keep the caches bounded; called between batches only."""
        _forget_oldest(self._streams, MAX_STREAMS, lambda _: False)
        _forget_oldest(self._commands, MAX_RECENT, lambda _: False)
        _forget_oldest(self._requests, MAX_RECENT + 2 * len(self._open), self._open.__contains__)


def _salt(batch: Batch) -> None:
    """Draw the salts that are still to be drawn."""
    batch.salts += draw_salts(len(batch.events) - len(batch.salts))


def _forget_oldest(cache: dict[str, Any], limit: int, keep: Callable[[str], bool]) -> None:
    if len(cache) > limit:
        for key in list(cache)[: len(cache) // 2]:
            if not keep(key):
                del cache[key]

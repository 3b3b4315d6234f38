"""A simple model of the log: plain lists, no caches, no batches. It predicts every outcome."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from app.events.lifecycle import FENCED, TERMINAL, TRANSITIONS
from app.events.store import (
    ANY,
    Append,
    Appended,
    Closed,
    Conflict,
    Duplicate,
    Fence,
    Fenced,
    Illegal,
    Outcome,
)

#: What the model keeps of an event: stream, version, type, data.
Entry = tuple[str, int, str, bytes]


@dataclass
class Row:
    stream: str
    state: str
    priority: int
    queued: int
    epoch: int = 0
    worker: str | None = None
    until: int = 0


@dataclass
class Model:
    """The log as it should be."""

    log: list[Entry] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    commands: dict[str, Duplicate] = field(default_factory=dict)
    requests: dict[str, Row] = field(default_factory=dict)

    def append(self, append: Append, priority: int = 0) -> Outcome:
        if append.command in self.commands:
            return self.commands[append.command]
        version = self.versions.get(append.stream, 0)
        if append.expected not in (ANY, version):
            return Conflict(version)
        rows = copy.deepcopy(self.requests)
        refusal = self._refusal(append, rows, priority)
        if refusal is not None:
            return refusal
        self.requests = rows
        first = len(self.log) + 1
        for event in append.events:
            self.put(append.stream, event.type, event.data)
        done = Appended(first, len(self.log), self.versions[append.stream])
        if append.command is not None:
            self.commands[append.command] = Duplicate(done.last_seq, done.version)
        return done

    def put(self, stream: str, event_type: str, data: bytes) -> None:
        self.versions[stream] = self.versions.get(stream, 0) + 1
        self.log.append((stream, self.versions[stream], event_type, data))

    def _refusal(self, append: Append, rows: dict[str, Row], priority: int) -> Outcome | None:
        fence = append.fence
        if fence is not None:
            row = rows.get(fence.request)
            if row is None:
                return Illegal(append.events[0].type, None)
            if row.state in TERMINAL:
                return Closed(row.state)
            if row.worker is None or row.epoch != fence.epoch:
                return Fenced(row.epoch)
        for place, event in enumerate(append.events):
            if event.type not in TRANSITIONS:
                continue
            row = rows.get(event.request)
            if row is None:
                if event.type != "request.queued":
                    return Illegal(event.type, None)
                seq = len(self.log) + 1 + place
                rows[event.request] = Row(append.stream, "queued", priority, seq)
                continue
            if row.state in TERMINAL:
                return Closed(row.state)
            if event.type in FENCED and (fence is None or fence.request != event.request):
                return Fenced(row.epoch)
            after = TRANSITIONS[event.type].get(row.state)
            if after is None or row.stream != append.stream:
                return Illegal(event.type, row.state)
            row.state = after
            if after in TERMINAL or after == "queued":
                row.worker = None
        return None

    def claim(self, worker: str, limit: int, until: int) -> list[tuple[str, int]]:
        free = [
            (-r.priority, r.queued, id) for id, r in self.requests.items() if r.state == "queued"
        ]
        claimed = []
        for _, _, id in sorted(free)[:limit]:
            row = self.requests[id]
            row.state, row.epoch, row.worker, row.until = "claimed", row.epoch + 1, worker, until
            self.put(row.stream, "request.claimed", b"")
            claimed.append((id, row.epoch))
        return claimed

    def heartbeat(self, worker: str, until: int) -> set[Fence]:
        held = {id: row for id, row in self.requests.items() if row.worker == worker}
        for row in held.values():
            row.until = until
        return {Fence(id, row.epoch) for id, row in held.items()}

    def expire(self, worker: str | None, now: int) -> set[str]:
        return {
            id
            for id, row in self.requests.items()
            if row.worker is not None and (row.worker == worker if worker else row.until < now)
        }

    def give_back(self, request: str) -> None:
        row = self.requests[request]
        row.state, row.worker = "queued", None
        self.put(row.stream, "request.abandoned", b"")

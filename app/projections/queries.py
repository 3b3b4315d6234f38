"""The SQL of the read side. Each function runs inside one read transaction."""

from __future__ import annotations

from typing import Any

import msgspec

from app.projections.database import Connection
from app.projections.requests import RequestRow

__all__ = [
    "Prefixes",
    "RunRow",
    "Span",
    "ThreadRow",
    "prefixes",
    "requests",
    "thread",
    "threads",
    "timeline",
    "unfinished_runs",
    "waiting_threads",
]

Prefixes = dict[str, str]
"""Projection -> prefix of the tables that serve."""

PREVIEW = 160
MAX_LIMIT = 1000


class ThreadRow(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation in a list. ``seq`` is that of its last message (or its first event).

    ``preview`` is the beginning of its last message, on one line. Times are ns since the epoch.
    """

    id: str
    owner: str | None
    title: str | None
    created: int
    updated: int
    seq: int
    version: int
    messages: int
    preview: str


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Something that took time: ``kind`` is run, step, message, request or phase.

    ``parent`` is the id of the span it belongs to. Phases are named queue, prefill, decode and
    preempted. ``end`` is None while it lasts. Times are ns since the epoch. ``detail`` has
    ``first_token`` (ns) of messages and requests, ``tokens``, and what is known beyond.
    """

    id: str
    kind: str
    name: str
    parent: str | None
    start: int
    end: int | None
    status: str
    detail: dict[str, Any]


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a handler that has not ended."""

    run: str
    thread: str
    node: str
    hook: str
    resumable: bool
    message: str | None


def prefixes(connection: Connection) -> Prefixes:
    """Read which generation of each projection serves."""
    rows = connection.all("SELECT name, generation FROM projection")
    return {name: f"{name}_{generation}_" for name, generation in rows}


def _thread_columns(p: str) -> str:
    return f"""
        SELECT t.id, t.owner, t.title, t.created, t.updated, t.active, t.version, t.messages, (
            SELECT substr(m.text, 1, 4 * {PREVIEW}) FROM {p}message m
            WHERE m.thread = t.id AND m.text <> ''
            ORDER BY m.first DESC LIMIT 1)
        FROM {p}thread t"""


def _thread_row(row: tuple[Any, ...]) -> ThreadRow:
    id, owner, title, created, updated, seq, version, messages, text = row
    return ThreadRow(
        id=id,
        owner=owner,
        title=title,
        created=created,
        updated=updated,
        seq=seq,
        version=version,
        messages=messages,
        preview=" ".join((text or "").split())[:PREVIEW],
    )


def threads(
    connection: Connection,
    using: Prefixes,
    *,
    owner: str | None,
    limit: int,
    before: int | None,
    search: str | None,
) -> list[ThreadRow]:
    """See `Views.threads`."""
    p, where = using["history"], ["t.deleted = 0"]
    values: list[Any] = []
    if owner is not None:
        where.append("t.owner = ?")
        values.append(owner)
    if before is not None:
        where.append("t.active < ?")
        values.append(before)
    if search and not search.isspace():
        titles, texts = (connection.search(p + table, search) for table in ("thread", "message"))
        if titles is None or texts is None:
            return []
        where.append(
            f"""(t.first IN (SELECT m.first FROM {p}thread m WHERE {titles[0]})
            OR t.id IN (SELECT m.thread FROM {p}message m WHERE {texts[0]}))"""
        )
        values += [titles[1], texts[1]]
    values.append(max(1, min(limit, MAX_LIMIT)))
    sql = f"{_thread_columns(p)} WHERE {' AND '.join(where)} ORDER BY t.active DESC LIMIT ?"
    found = connection.all(sql, *values)
    return [_thread_row(row) for row in found]


def thread(connection: Connection, using: Prefixes, id: str) -> ThreadRow | None:
    """See `Views.thread`."""
    sql = f"{_thread_columns(using['history'])} WHERE t.id = ? AND t.deleted = 0"
    row = connection.one(sql, id)
    return _thread_row(row) if row is not None else None


def timeline(connection: Connection, using: Prefixes, stream: str) -> list[Span]:
    """See `Views.timeline`."""
    # Spans that begin with one event stand outermost first.
    sql = f"""
        SELECT kind, id, name, parent, start, "end", status, first, tokens, detail
        FROM {using["timeline"]}span WHERE stream = ?
        ORDER BY position, CASE kind WHEN 'run' THEN 0 WHEN 'step' THEN 1 WHEN 'message' THEN 2
            WHEN 'request' THEN 3 ELSE 4 END, id"""
    return [_span(row) for row in connection.all(sql, stream)]


def _span(row: tuple[Any, ...]) -> Span:
    kind, id, name, parent, start, end, status, first, tokens, detail = row
    known: dict[str, Any] = msgspec.json.decode(detail)
    if first is not None:
        known["first_token"] = first
    if kind in ("request", "phase"):
        known["tokens"] = tokens
    return Span(
        id=id,
        kind=kind,
        name=name,
        parent=parent,
        start=start,
        end=end,
        status=status,
        detail=known,
    )


def requests(
    connection: Connection, using: Prefixes, *, state: str | None, limit: int
) -> list[RequestRow]:
    """See `Views.requests`."""
    columns = ", ".join(f'"{field.name}"' for field in msgspec.structs.fields(RequestRow))
    where, values = ("WHERE state = ?", [state]) if state is not None else ("", [])
    sql = f"SELECT {columns} FROM {using['requests']}request {where} ORDER BY seq DESC LIMIT ?"
    rows = connection.all(sql, *values, max(1, min(limit, MAX_LIMIT)))
    return [RequestRow(*row) for row in rows]


def unfinished_runs(connection: Connection, using: Prefixes) -> list[RunRow]:
    """See `Views.unfinished_runs`."""
    sql = f"""
        SELECT id, thread, node, hook, resumable, message FROM {using["history"]}run
        WHERE ended IS NULL ORDER BY started, id"""
    return [
        RunRow(
            run=id, thread=thread, node=node, hook=hook, resumable=bool(resumable), message=message
        )
        for id, thread, node, hook, resumable, message in connection.all(sql)
    ]


def waiting_threads(connection: Connection, using: Prefixes, *, since: int) -> list[str]:
    """See `Views.waiting_threads`."""
    p = using["history"]
    sql = f"""
        SELECT id FROM (
            SELECT t.id, t.active, (
                SELECT m.id FROM {p}message m
                WHERE m.thread = t.id
                    AND m.role = 'user' AND m.run IS NULL AND m.status <> 'removed'
                ORDER BY m.first DESC LIMIT 1
            ) AS asked
            FROM {p}thread t WHERE t.deleted = 0 AND t.updated >= ?
        ) AS recent
        WHERE asked IS NOT NULL
            AND EXISTS (SELECT 1 FROM {p}run r WHERE r.thread = recent.id)
            AND NOT EXISTS (
                SELECT 1 FROM {p}run r WHERE r.thread = recent.id AND r.message = recent.asked)
        ORDER BY active, id"""
    return [id for (id,) in connection.all(sql, since)]

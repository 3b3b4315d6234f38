"""Rare operations on Postgres, planned by the same ledger as everywhere, under the append lock.

Loading, redacting and archiving need several looks and writes. They hold the lock across round
trips, which nothing that users wait for does; the server ends such a transaction when this process
stops in the middle of it (``idle_in_transaction_session_timeout``).
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import astuple

from app.events import postgres_sql as sql
from app.events.backend import event_rows
from app.events.ledger import Batch, Found, Ledger, Missing, State
from app.events.ops import Op
from app.events.postgres_archive import write_moves
from app.events.queue import Request

__all__ = ["insert_batch", "look_up", "read_state", "write_planned"]

_EVENT_COLUMNS = (
    "seq",
    "stream_id",
    "version",
    "type_id",
    "schema",
    "time",
    "actor",
    "request",
    "run",
    "cause",
    "data",
    "salt",
    "leaf",
)


async def write_planned(conn: Any, op: Op, now: int) -> Batch:
    """Plan one operation and write what it changes, in one transaction."""
    async with conn.transaction():
        await conn.execute("SELECT log_lock()")
        ledger = Ledger()
        ledger.restore(await read_state(conn))
        missing = ledger.missing([op])
        if missing:
            ledger.learn(missing, await look_up(conn, missing))
        batch = ledger.plan([op], now)
        if not batch.empty:
            await insert_batch(conn, batch)
    return batch


async def read_state(conn: Any) -> State:
    """Read the end of the log."""
    return State(
        head=await conn.fetchval(sql.SELECT_HEAD),
        last_stream=await conn.fetchval(sql.SELECT_LAST_STREAM),
        types=dict(await conn.fetch(sql.SELECT_TYPES)),
        requests=[Request(*row) for row in await conn.fetch(sql.SELECT_OPEN_REQUESTS)],
    )


async def look_up(conn: Any, missing: Missing) -> Found:
    """Look up what the ledger does not know."""
    found = Found()
    if missing.streams:
        for name, id, version in await conn.fetch(sql.SELECT_VERSIONS, list(missing.streams)):
            found.streams[name] = (id, version)
    if missing.requests:
        for row in await conn.fetch(sql.SELECT_REQUESTS, list(missing.requests)):
            found.requests[row[0]] = Request(*row)
    if missing.commands:
        for id, seq, version in await conn.fetch(sql.SELECT_COMMANDS, list(missing.commands)):
            found.commands[id] = (seq, version)
    return found


async def insert_batch(conn: Any, batch: Batch) -> None:
    """Insert what a batch writes, inside the caller's transaction."""
    copy = conn.copy_records_to_table
    if batch.streams:
        await copy("stream", records=batch.streams, columns=("id", "name"))
    if batch.types:
        await copy("event_type", records=batch.types, columns=("id", "name"))
    if batch.events:
        await copy("event", records=event_rows(batch), columns=_EVENT_COLUMNS)
    if batch.requests:
        rows = [astuple(row) for row in batch.requests.values()]
        await conn.executemany(sql.UPSERT_REQUEST, rows)
    if batch.commands:
        records = [(id, *row) for id, row in batch.commands.items()]
        await copy("command", records=records, columns=("id", "seq", "version", "time"))
    if batch.erased:
        rows = [(e.left, e.opening, e.seq, stream, e.version) for e, stream in batch.erased]
        done = await conn.execute(sql.ERASE, *map(list, zip(*rows, strict=True)))
        if done != f"UPDATE {len(rows)}":
            raise ValueError("an event to be erased is no longer where it was")
    await write_moves(conn, batch)

"""The ledger of the read models: what each projection has folded, and where its rows are.

Rows are in tables of a generation. One generation of a projection serves; another may be being
filled by a rebuild. Tables of any other are left over, and swept away.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

import msgspec

from app.errors import EverlogError
from app.projections.database import Connection, Where, connect
from app.projections.projection import Projection
from app.projections.rows import Table

__all__ = [
    "Position",
    "beat",
    "create",
    "halt",
    "index",
    "move",
    "open_ledger",
    "point",
    "position",
    "positions",
    "prepare",
    "release",
    "sweep",
    "take",
]


class Position(msgspec.Struct, frozen=True):
    """Where a projection stands.

    Attributes:
        name: The projection.
        generation: Prefix of the tables that serve.
        version: Of the code that folded them.
        incarnation: Of the log they were folded from.
        seq: Last event in them.
        error: Why it stands still; None while it runs.
        updated: ns since the epoch.

    """

    name: str
    generation: int
    version: int
    incarnation: str
    seq: int
    error: str | None
    updated: int


class _Rebuild(msgspec.Struct, frozen=True):
    """A rebuild at work: ``token`` owns ``generation``; ``beat`` is when it wrote last, in ns."""

    name: str
    token: str
    generation: int
    beat: int


PROJECTION = Table("projection", Position, key=("name",))
REBUILD = Table("rebuild", _Rebuild, key=("name",))


def open_ledger(where: Where, *, rebuilding: bool = False) -> Connection:
    """Connect to read models in order to write, and create the ledger if there is none.

    Raises:
        Trouble: The database is away.
        StartupError: It cannot be opened, or is something else.

    """
    connection = connect(where, "rebuild" if rebuilding else "run")
    try:
        if PROJECTION.name not in connection.tables(PROJECTION.name):
            with connection.transaction():
                for table in (PROJECTION, REBUILD):
                    if table.name not in connection.tables(table.name):
                        connection.create(table, "")
    except BaseException:
        connection.close()
        raise
    return connection


def position(connection: Connection, name: str) -> Position | None:
    """Read where a projection stands; None if it has never run."""
    return connection.load(PROJECTION, "", (name,))


def positions(connection: Connection) -> dict[str, Position]:
    """Read where all projections stand."""
    rows = connection.all(f"SELECT {PROJECTION.names} FROM projection")
    return {row[0]: PROJECTION.unpack(row) for row in rows}


def point(
    connection: Connection, projection: Projection, *, generation: int, incarnation: str, seq: int
) -> None:
    """Let a generation serve."""
    now = Position(
        name=projection.name,
        generation=generation,
        version=projection.version,
        incarnation=incarnation,
        seq=seq,
        error=None,
        updated=time.time_ns(),
    )
    connection.upsert(PROJECTION, "", [now])


def move(connection: Connection, name: str, seq: int) -> None:
    """Set a checkpoint."""
    sql = "UPDATE projection SET seq = ?, updated = ? WHERE name = ?"
    connection.run(sql, seq, time.time_ns(), name)


def halt(connection: Connection, name: str, error: str | None) -> None:
    """Note why a projection stands still; None: it runs."""
    if error is not None:
        error = error.replace("\0", "\ufffd")
    connection.run("UPDATE projection SET error = ? WHERE name = ?", error, name)


def create(
    connection: Connection, projection: Projection, generation: int, *, indexed: bool = True
) -> None:
    """Create the tables of a generation; without ``indexed`` call `index` when they are full."""
    for table in projection.all_tables:
        connection.create(table, projection.prefix(generation))
    if indexed:
        index(connection, projection, generation)


def index(connection: Connection, projection: Projection, generation: int) -> None:
    """Create the indexes that `create` left out."""
    connection.index(projection.all_tables, projection.prefix(generation))


def _left_over(connection: Connection, name: str) -> list[str]:
    """Tables of generations that neither serve nor are being filled."""
    used = {generation for generation, _ in _generations(connection, name)}
    found = ((re.match(rf"{name}_(\d+)_", t), t) for t in connection.tables(f"{name}_"))
    return [table for match, table in found if match is not None and int(match[1]) not in used]


def _generations(connection: Connection, name: str) -> list[tuple[int, str]]:
    tables = ("projection", "rebuild")
    return [
        (generation, table)
        for table in tables
        for (generation,) in connection.all(f"SELECT generation FROM {table} WHERE name = ?", name)
    ]


def sweep(connection: Connection, names: Iterable[str]) -> None:
    """Drop the tables of generations that neither serve nor are being filled.

    Each in a transaction of its own: Postgres waits for the readers of a table it drops, and would
    deadlock with those of two.
    """
    for name in names:
        for table in _left_over(connection, name):
            with connection.transaction():
                if table in _left_over(connection, name):
                    connection.drop([table])


def prepare(
    connection: Connection,
    projection: Projection,
    *,
    seen: Position | None,
    incarnation: str,
    head: int,
) -> str | None:
    """Make a projection ready to fold on; start it over where its rows cannot be used.

    Call inside a transaction; `sweep` after it. ``seen`` is its position as read before ``head``
    was.

    Returns:
        Why it starts over, or None.

    """
    now = position(connection, projection.name)
    if now is None:
        reason: str | None = "it is new"
    elif now.incarnation != incarnation:
        reason = "the log is another one"
    elif now.version != projection.version:
        reason = f"its rows are of version {now.version}, the code is of {projection.version}"
    elif seen is not None and seen.seq > head and now.seq >= seen.seq:
        reason = f"it has seen event {seen.seq}, the log ends at {head}"
    else:
        reason = None
        halt(connection, projection.name, None)
    if reason is not None:
        generation = _next_generation(connection, projection.name)
        create(connection, projection, generation)
        point(connection, projection, generation=generation, incarnation=incarnation, seq=0)
    return reason


def _next_generation(connection: Connection, name: str) -> int:
    """A generation number that no table has."""
    connection.drop(_left_over(connection, name))
    return max((generation for generation, _ in _generations(connection, name)), default=0) + 1


def take(connection: Connection, projection: Projection, token: str, *, stale: float) -> int:
    """Begin a new generation beside the one that serves, in the caller's transaction.

    Tables of a rebuild that died are dropped. It is dead when its connection is; where there is no
    telling, when it wrote no batch for ``stale`` seconds.

    Raises:
        EverlogError: Another rebuild is at work.

    """
    alone = connection.lead(f"rebuild {projection.name}")
    other = connection.load(REBUILD, "", (projection.name,))
    idle = (time.time_ns() - other.beat) / 1e9 if other is not None else stale
    if alone is False or (alone is None and idle < stale):
        again = f" If it was killed, try again in {stale - idle:.0f} s." if alone is None else ""
        raise EverlogError(
            f"{projection.name} is being rebuilt by another process", hint=f"Wait for it.{again}"
        )
    generation = _next_generation(connection, projection.name)
    create(connection, projection, generation, indexed=False)
    mine = _Rebuild(projection.name, token, generation, time.time_ns())
    connection.upsert(REBUILD, "", [mine])
    connection.drop(_left_over(connection, projection.name))
    return generation


def beat(connection: Connection, name: str, token: str) -> None:
    """Show that a rebuild is alive.

    Raises:
        EverlogError: Another rebuild has taken its place.

    """
    sql = "UPDATE rebuild SET beat = ? WHERE name = ? AND token = ?"
    if connection.run(sql, time.time_ns(), name, token) != 1:
        raise EverlogError(f"another rebuild of {name} has taken the place of this one")


def release(connection: Connection, name: str, token: str) -> bool:
    """Forget a rebuild; whether it was still ours."""
    return connection.run("DELETE FROM rebuild WHERE name = ? AND token = ?", name, token) == 1

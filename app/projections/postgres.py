"""Read models in Postgres, in the current schema of the log's database.

`PostgresConnection` blocks like its SQLite twin: asyncpg behind an event loop of its own, which
runs only while a call waits for the server.

Locks are advisory, under keys of this schema alone, so appends to the log never wait for them:
``begin`` takes the writers' lock for one transaction, as ``BEGIN IMMEDIATE`` does; ``lead`` takes
one for as long as the connection lives. Leading only saves doing the work twice. That it is done
once rests on the writers' lock and on checkpoints, which move together with the rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Collection, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import asyncpg
import msgspec
import uvloop

from app.errors import StartupError
from app.events import pg
from app.events.url import parse_url
from app.projections.database import Connection, Key, Moved, Purpose, Trouble
from app.projections.rows import Table
from app.projections.words import tsquery, tsvector

__all__ = ["PostgresConnection"]

R = TypeVar("R", bound=msgspec.Struct)
T = TypeVar("T")

READ_SECONDS = 10.0
RUN_SECONDS = 60.0
"""Longest statement of a read, and of the runner; a rebuild may build an index for longer."""

LOCK_SECONDS = 30.0
IDLE_SECONDS = 15.0
"""A process that does nothing for so long (frozen, or its machine is gone) no longer leads."""

_TYPES = {
    int: "bigint",
    bool: "bigint",
    str: 'text COLLATE "C"',
    float: "double precision",
    None: 'text COLLATE "C"',
}
_ARRAYS = {int: "bigint[]", bool: "bigint[]", str: "text[]", float: "float8[]", None: "text[]"}

_ABOUT_VALUES = ("22", "23", "54")
"""Classes of errors about what was written, not about the database."""

_LOST = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises when a connection dies; the last when it does so between two messages."""


def _settings(purpose: Purpose) -> dict[str, str]:
    common = {
        "application_name": f"everlog views ({purpose})",
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "3",
        "tcp_keepalives_count": "3",
        "lock_timeout": f"{LOCK_SECONDS * 1000:.0f}",
        "idle_in_transaction_session_timeout": f"{IDLE_SECONDS * 1000:.0f}",
    }
    if purpose == "read":
        return common | {
            "default_transaction_isolation": "repeatable read",
            "default_transaction_read_only": "on",
            "statement_timeout": f"{READ_SECONDS * 1000:.0f}",
        }
    # A crash may take the last transactions, rows and checkpoint together: they are folded again.
    common["synchronous_commit"] = "off"
    if purpose == "rebuild":
        return common | {"statement_timeout": "0"}
    return common | {
        "statement_timeout": f"{RUN_SECONDS * 1000:.0f}",
        "idle_session_timeout": f"{IDLE_SECONDS * 1000:.0f}",
    }


class PostgresConnection(Connection):
    """A connection to a database; see `app.projections.database`.

    Args:
        dsn: URL of the log's database; its ``search_path`` names the schema.
        purpose: What for.

    Raises:
        Trouble: The database is away, or lets nobody in.
        StartupError: There is no schema to put tables in.

    """

    def __init__(self, dsn: str, purpose: Purpose = "run") -> None:
        self._loop = uvloop.new_event_loop()
        self._sql: dict[Any, str] = {}
        self._begun = False
        self._connection: Any = None
        self._shown = parse_url(dsn).shown
        limits = {"read": READ_SECONDS, "run": RUN_SECONDS}
        # What the server itself would cut short; more only if it does not answer at all.
        self._limit = limits[purpose] + 5 if purpose in limits else None
        try:
            self._connection = self._connect(dsn, purpose)
            row = self.one("SELECT current_schema()")
        except BaseException:
            self.close()
            raise
        if row is None or row[0] is None:
            self.close()
            raise StartupError(
                f"{self._shown} has no schema for the read models",
                hint="Create the schema that its search_path names.",
            )
        self._schema = str(row[0])

    def _connect(self, dsn: str, purpose: Purpose) -> Any:
        try:
            return self._loop.run_until_complete(pg.connect(dsn, **_settings(purpose)))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            told = pg.startup_error(dsn, error)
            raise Trouble(told.message, hint=told.hint) from error

    @property
    def usable(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                self._loop.run_until_complete(connection.close(timeout=2))
            connection.terminate()
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return self._loop.run_until_complete(call)
        except asyncpg.PostgresError as error:
            state = error.sqlstate or ""
            if state.startswith(_ABOUT_VALUES):
                raise
            if state == "25006":  # now a standby: the next connection may find the primary
                self._connection.terminate()
            kind = Moved if state == "42P01" else Trouble
            raise kind(self._said(error), hint=pg.store_error(error).hint) from error
        except (*_LOST, TimeoutError) as error:
            if isinstance(error, ValueError):  # a value of the wrong kind
                raise
            if isinstance(error, TimeoutError | asyncpg.InternalClientError):
                self._connection.terminate()
            raise Trouble(self._said(error)) from error

    def _said(self, error: Exception) -> str:
        return f"the read models in {self._shown}: {error or type(error).__name__}"

    def _call(self, method: str, sql: str, *values: Any) -> Any:
        if not self.usable:
            raise Trouble(f"the read models in {self._shown}: the connection is lost")
        return self._wait(getattr(self._connection, method)(sql, *values, timeout=self._limit))

    # ----------------------------------------------------------------------------- queries

    def all(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._call("fetch", self._numbered(sql), *values)]

    def run(self, sql: str, *values: Any) -> int:
        status: str = self._call("execute", self._numbered(sql), *values)
        count = status.rpartition(" ")[2]
        return int(count) if count.isdecimal() else 0

    def _numbered(self, sql: str) -> str:
        """Write ``?`` as ``$1``, ``$2`` and so on."""
        known = self._sql.get(sql)
        if known is None:
            first, *rest = sql.split("?")
            known = first + "".join(f"${n}{part}" for n, part in enumerate(rest, 1))
            self._sql[sql] = known
        return known

    def search(self, table: str, words: str) -> tuple[str, str] | None:
        query = tsquery(words)
        return ("m.search @@ (?::text)::tsquery", query) if query is not None else None

    # ------------------------------------------------------------------------ transactions

    def _key(self, what: str) -> int:
        name = f"everlog views {what} {self._schema}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)

    def begin(self) -> None:
        self._begun = True
        try:
            self._call("execute", f"BEGIN; SELECT pg_advisory_xact_lock({self._key('write')})")
        except BaseException:
            self.rollback()
            raise

    def commit(self) -> None:
        self.run("COMMIT")
        self._begun = False

    def rollback(self) -> None:
        if self._begun and self.usable:
            try:
                self.run("ROLLBACK")
            except (Trouble, asyncpg.PostgresError):
                self._connection.terminate()
        self._begun = False

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        self._begun = True
        try:
            self.run("BEGIN")
            yield
        finally:
            self.rollback()

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        self.run("SAVEPOINT attempt")
        try:
            yield
        except Exception:
            if self.usable:
                self.run("ROLLBACK TO attempt")
            raise
        self.run("RELEASE attempt")

    def lead(self, name: str) -> bool | None:
        row = self.one("SELECT pg_try_advisory_lock(?)", self._key(f"lead {name}"))
        return row is not None and bool(row[0])

    # ------------------------------------------------------------------------------ tables

    def tables(self, prefix: str) -> list[str]:
        rows = self.all(
            "SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()"
            " AND starts_with(tablename::text, ?::text) ORDER BY tablename",
            prefix,
        )
        return [name for (name,) in rows]

    def create(self, table: Table[Any], prefix: str) -> None:
        columns = [f'"{column}" {_TYPES[kind]}' for column, kind in table.kinds.items()]
        if table.search is not None:
            columns.append("search tsvector")
        columns.append(f"PRIMARY KEY ({', '.join(table.key)})")
        self.run(f"CREATE TABLE {prefix}{table.name} ({', '.join(columns)})")
        for statement in table.indexes(prefix):
            self.run(statement)

    def index(self, tables: Sequence[Table[Any]], prefix: str) -> None:
        for table in tables:
            name = prefix + table.name
            if table.search is not None:
                self.run(f"CREATE INDEX {name}_search ON {name} USING gin (search)")
            self.run(f"ANALYZE {name}")

    def drop(self, names: Sequence[str]) -> None:
        for name in names:
            self.run(f'DROP TABLE IF EXISTS "{name}"')

    def load(self, table: Table[R], prefix: str, key: Key) -> R | None:
        sql = self._sql.get((table, prefix)) or self._select(table, prefix)
        row = self._call("fetchrow", sql, *[_storable(value) for value in key])
        return table.unpack(row) if row is not None else None

    def _select(self, table: Table[Any], prefix: str) -> str:
        where = " AND ".join(f"{column} = ${n}" for n, column in enumerate(table.key, 1))
        sql = f"SELECT {table.names} FROM {prefix}{table.name} WHERE {where}"
        return self._sql.setdefault((table, prefix), sql)

    def upsert(self, table: Table[R], prefix: str, rows: Collection[R]) -> None:
        if not rows:
            return
        columns = _columns(table, [table.pack(row) for row in rows])
        if table.search is not None:
            texts = columns[table.columns.index(table.search)]
            columns.append([tsvector(text) if text else "" for text in texts])
        sql = self._sql.get((table, prefix, "upsert")) or self._upsert(table, prefix)
        self._call("execute", sql, *columns)

    def _upsert(self, table: Table[Any], prefix: str) -> str:
        names, values, replace = table.names, table.names, table.replace
        arrays = [f"${n}::{_ARRAYS[kind]}" for n, kind in enumerate(table.kinds.values(), 1)]
        given = names
        if table.search is not None:
            names, values = f"{names}, search", f"{values}, search::tsvector"
            given, replace = f"{given}, search", f"{replace}, search = excluded.search"
            arrays.append(f"${len(arrays) + 1}::text[]")
        sql = (
            f"INSERT INTO {prefix}{table.name} ({names}) SELECT {values}"
            f" FROM unnest({', '.join(arrays)}) AS given ({given}) {replace}"
        )
        return self._sql.setdefault((table, prefix, "upsert"), sql)

    def delete(
        self, table: Table[Any], prefix: str, columns: tuple[str, ...], keys: Collection[Key]
    ) -> None:
        if not keys:
            return
        arrays = [f"${n}::{_ARRAYS[table.kinds[column]]}" for n, column in enumerate(columns, 1)]
        same = " AND ".join(f"kept.{column} = gone.{column}" for column in columns)
        sql = (
            f"DELETE FROM {prefix}{table.name} AS kept USING unnest({', '.join(arrays)})"
            f" AS gone ({', '.join(columns)}) WHERE {same}"
        )
        storable = [tuple(_storable(value) for value in key) for key in keys]
        self._call("execute", sql, *zip(*storable, strict=True))


def _storable(value: Any) -> Any:
    """A value as Postgres takes it: its text has no NUL."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _columns(table: Table[Any], rows: Collection[tuple[Any, ...]]) -> list[Sequence[Any]]:
    """Rows as one array a column, in a form Postgres takes."""
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
    merged = False
    for n in table.texts:
        if any("\0" in text for text in columns[n] if text):
            columns[n] = [_storable(text) for text in columns[n]]
            merged = merged or table.columns[n] in table.key
    if merged:  # keys that differed may be the same now
        keys = zip(*(columns[table.columns.index(column)] for column in table.key), strict=True)
        last = dict(zip(keys, zip(*columns, strict=True), strict=True))
        columns = list(zip(*last.values(), strict=True))
    return columns

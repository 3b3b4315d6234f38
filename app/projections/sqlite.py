"""Read models in a SQLite file of their own.

The file is separate from the log, so that the log keeps exactly one writing connection; it can be
deleted at any time. ``synchronous=NORMAL`` in WAL mode may lose the last transactions in a power
cut, never a part of one: rows and checkpoint go back together, and the fold goes on from there.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

import msgspec

from app.errors import StartupError
from app.projections.database import Connection, Key, Purpose, Trouble
from app.projections.rows import Table
from app.projections.words import wanted

__all__ = ["SqliteConnection", "match"]

R = TypeVar("R", bound=msgspec.Struct)

APPLICATION = 0x45564C56
BUSY_SECONDS = 30.0

ROWS = (64, 8, 1)
"""Rows a statement inserts: full-text indexes write after each statement, not each row."""

REBUILD_PAGES = 16_000
"""Pages in the WAL (4 KiB each) after which a rebuild copies them into the file. A page that was
written many times is copied once, and the disk is seldom waited for."""

_TYPES = {int: "INTEGER", bool: "INTEGER", str: "TEXT", float: "REAL", None: "TEXT"}


class SqliteConnection(Connection):
    """A connection to a file; see `app.projections.database`.

    Args:
        path: The file; created unless it is to ``read`` only.
        purpose: What for.

    Raises:
        StartupError: The file cannot be opened, or is something else.

    """

    usable = True

    def __init__(self, path: str, purpose: Purpose = "run") -> None:
        self._sql: dict[Any, str] = {}
        self._purpose = purpose
        try:
            self._connection = sqlite3.connect(
                path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False
            )
            if purpose == "read":
                self._connection.execute("PRAGMA query_only = ON")
            else:
                self._claim(path)
        except sqlite3.Error as error:
            raise StartupError(
                f"cannot open the read models in {path}: {error}",
                hint="The file holds nothing that the log does not: delete it and start again.",
            ) from error

    def _claim(self, path: str) -> None:
        execute = self._connection.execute
        (application,) = execute("PRAGMA application_id").fetchone()
        (tables,) = execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application != APPLICATION and tables:
            raise StartupError(
                f"{path} is a database, but not one of Everlog's read models",
                hint="Name another file for the read models.",
            )
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        if self._purpose == "rebuild":
            execute(f"PRAGMA wal_autocheckpoint = {REBUILD_PAGES}")
        if application != APPLICATION:
            execute(f"PRAGMA application_id = {APPLICATION}")

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._purpose == "run":
                self._connection.execute("PRAGMA optimize")
        self._connection.close()

    # ----------------------------------------------------------------------------- queries

    def all(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.OperationalError as error:
            raise Trouble(str(error)) from error

    def run(self, sql: str, *values: Any) -> int:
        try:
            return self._connection.execute(sql, values).rowcount
        except sqlite3.OperationalError as error:
            raise Trouble(str(error)) from error

    def _many(self, sql: str, rows: Collection[Any]) -> None:
        try:
            self._connection.executemany(sql, rows)
        except sqlite3.OperationalError as error:
            raise Trouble(str(error)) from error

    def search(self, table: str, words: str) -> tuple[str, str] | None:
        query = match(words)
        found = f"SELECT rowid FROM {table}_search WHERE {table}_search MATCH ?"
        return (f"m.first IN ({found})", query) if query is not None else None

    # ------------------------------------------------------------------------ transactions

    def begin(self) -> None:
        self.run("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self.run("COMMIT")

    def rollback(self) -> None:
        # SQLite has rolled back by itself after some errors (disk full).
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        self.run("BEGIN")
        try:
            yield
        finally:
            self.rollback()

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        self.run("SAVEPOINT attempt")
        try:
            yield
        except Exception:
            if self._connection.in_transaction:
                self.run("ROLLBACK TO attempt")
            raise
        finally:
            if self._connection.in_transaction:
                self.run("RELEASE attempt")

    def lead(self, name: str) -> bool | None:
        """No telling: processes that keep up one file take turns, each transaction anew."""
        return None

    # ------------------------------------------------------------------------------ tables

    def tables(self, prefix: str) -> list[str]:
        # Virtual tables first: dropping one drops its shadow tables, which cannot be dropped.
        rows = self.all(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND substr(name, 1, ?) = ?"
            " ORDER BY sql NOT LIKE 'CREATE VIRTUAL%', name",
            len(prefix),
            prefix,
        )
        return [name for (name,) in rows]

    def create(self, table: Table[Any], prefix: str) -> None:
        name = prefix + table.name
        columns = [
            f'"{column}" {_TYPES[kind]}' + (" PRIMARY KEY" if column == table.rowid else "")
            for column, kind in table.kinds.items()
        ]
        constraint = "UNIQUE" if table.rowid else "PRIMARY KEY"
        columns.append(f"{constraint} ({', '.join(table.key)})")
        options = "STRICT" if table.rowid else "STRICT, WITHOUT ROWID"
        self.run(f"CREATE TABLE {name} ({', '.join(columns)}) {options}")
        for statement in (*table.indexes(prefix), *_search_ddl(table, name)):
            self.run(statement)

    def index(self, tables: Sequence[Table[Any]], prefix: str) -> None:
        """Nothing: triggers keep the search indexes up."""

    def drop(self, names: Sequence[str]) -> None:
        for name in names:
            self.run(f'DROP TABLE IF EXISTS "{name}"')

    def load(self, table: Table[R], prefix: str, key: Key) -> R | None:
        sql = self._sql.get((table, prefix)) or self._select(table, prefix)
        try:
            row = self._connection.execute(sql, key).fetchone()
        except sqlite3.OperationalError as error:
            raise Trouble(str(error)) from error
        return table.unpack(row) if row is not None else None

    def _select(self, table: Table[Any], prefix: str) -> str:
        where = " AND ".join(f"{column} = ?" for column in table.key)
        sql = f"SELECT {table.names} FROM {prefix}{table.name} WHERE {where}"
        return self._sql.setdefault((table, prefix), sql)

    def upsert(self, table: Table[R], prefix: str, rows: Collection[R]) -> None:
        packed, start = [table.pack(row) for row in rows], 0
        for size in ROWS:
            while len(packed) - start >= size:
                sql = self._sql.get((table, prefix, size)) or self._insert(table, prefix, size)
                self.run(sql, *chain.from_iterable(packed[start : start + size]))
                start += size

    def _insert(self, table: Table[Any], prefix: str, rows: int) -> str:
        row = f"({', '.join('?' * len(table.columns))})"
        values = ", ".join([row] * rows)
        sql = f"INSERT INTO {prefix}{table.name} ({table.names}) VALUES {values} {table.replace}"
        return self._sql.setdefault((table, prefix, rows), sql)

    def delete(
        self, table: Table[Any], prefix: str, columns: tuple[str, ...], keys: Collection[Key]
    ) -> None:
        where = " AND ".join(f"{column} = ?" for column in columns)
        self._many(f"DELETE FROM {prefix}{table.name} WHERE {where}", keys)


def _search_ddl(table: Table[Any], name: str) -> tuple[str, ...]:
    """DDL of the full-text index of a table, kept up by triggers."""
    column, fts = table.search, f"{name}_search"
    if column is None:
        return ()
    add = f"INSERT INTO {fts} (rowid, {column}) VALUES (new.first, new.{column});"
    drop = f"INSERT INTO {fts} ({fts}, rowid, {column}) VALUES ('delete', old.first, old.{column});"
    return (
        f"CREATE VIRTUAL TABLE {fts} USING fts5({column}, content='{name}',"
        " content_rowid='first', tokenize='unicode61 remove_diacritics 2')",
        f"CREATE TRIGGER {fts}_add AFTER INSERT ON {name} BEGIN {add} END",
        f"CREATE TRIGGER {fts}_set AFTER UPDATE OF {column} ON {name}"
        f" WHEN new.{column} IS NOT old.{column} BEGIN {drop} {add} END",
    )


def match(search: str) -> str | None:
    """Turn what a person typed into an FTS5 query: all words, each as a prefix; None if no word.

    Words are quoted, so no character of them has a meaning in the query language.
    """
    quoted = ['"' + word.replace('"', '""') + '"*' for word in wanted(search)]
    return " ".join(quoted) or None

"""Rows of a projection: typed tables, and a unit of work between a fold and SQLite.

A projection's fold sees only `Rows`: rows by key, as structs. They are loaded on first use, kept
in memory, and written by `Rows.flush` with one ``executemany`` a table, so that a hundred events
about one row cost one statement. The fold stays pure, and the bulk path is the live path.
"""

from __future__ import annotations

import sqlite3
import types
import typing
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import msgspec

__all__ = ["Pieces", "Rows", "Table"]

R = TypeVar("R", bound=msgspec.Struct)
Key = tuple[Any, ...]

CACHED_ROWS = 20_000
"""Rows kept between two flushes; beyond, everything written is forgotten."""

_SQL_TYPES = {int: "INTEGER", bool: "INTEGER", str: "TEXT", float: "REAL"}


class Table(Generic[R]):
    """A table whose rows are structs: one column for each field.

    ``int``, ``bool``, ``float`` and ``str`` fields become columns of that type; others are JSON.

    Args:
        name: Name without the generation prefix.
        row: Struct of a row.
        key: Fields of the primary key.
        rowid: An integer field that is the table's rowid (full-text search refers to it).
        also: More DDL, with ``{p}`` for the generation prefix: indexes, triggers.

    """

    def __init__(
        self,
        name: str,
        row: type[R],
        *,
        key: tuple[str, ...],
        rowid: str | None = None,
        also: tuple[str, ...] = (),
    ) -> None:
        self.name, self.row, self.key, self.rowid, self.also = name, row, key, rowid, also
        hints = typing.get_type_hints(row)
        self.columns = tuple(field.name for field in msgspec.structs.fields(row))
        self.names = ", ".join(f'"{column}"' for column in self.columns)
        self.types = {column: _sql_type(hints[column]) for column in self.columns}
        self.json = tuple(i for i, c in enumerate(self.columns) if self.types[c] is None)
        self.decoders = {i: msgspec.json.Decoder(hints[self.columns[i]]) for i in self.json}
        self.bools = tuple(i for i, c in enumerate(self.columns) if hints[c] is bool)

    def ddl(self, prefix: str) -> list[str]:
        """Statements that create the table of one generation."""
        columns = [
            f'"{column}" {self.types[column] or "TEXT"}'
            + (" PRIMARY KEY" if column == self.rowid else "")
            for column in self.columns
        ]
        constraint = "UNIQUE" if self.rowid else "PRIMARY KEY"
        columns.append(f"{constraint} ({', '.join(self.key)})")
        options = "STRICT" if self.rowid else "STRICT, WITHOUT ROWID"
        create = f"CREATE TABLE {prefix}{self.name} ({', '.join(columns)}) {options}"
        return [create, *(statement.replace("{p}", prefix) for statement in self.also)]

    def select(self, prefix: str) -> str:
        """The statement that reads one row by key."""
        where = " AND ".join(f"{column} = ?" for column in self.key)
        return f"SELECT {self.names} FROM {prefix}{self.name} WHERE {where}"

    def upsert(self, prefix: str) -> str:
        """The statement that writes one row."""
        update = ", ".join(f'"{c}" = excluded."{c}"' for c in self.columns if c not in self.key)
        return (
            f"INSERT INTO {prefix}{self.name} ({self.names})"
            f" VALUES ({', '.join('?' * len(self.columns))})"
            f" ON CONFLICT ({', '.join(self.key)}) DO UPDATE SET {update}"
        )

    def key_of(self, row: R) -> Key:
        """The key of a row."""
        return tuple(getattr(row, column) for column in self.key)

    def pack(self, row: R) -> tuple[Any, ...]:
        """A row as SQLite stores it."""
        values = msgspec.structs.astuple(row)
        if not self.json:
            return values
        packed = list(values)
        for i in self.json:
            packed[i] = msgspec.json.encode(packed[i]).decode()
        return tuple(packed)

    def unpack(self, values: Iterable[Any]) -> R:
        """A row from SQLite."""
        unpacked = list(values)
        for i in self.json:
            unpacked[i] = self.decoders[i].decode(unpacked[i])
        for i in self.bools:
            unpacked[i] = bool(unpacked[i])
        return self.row(*unpacked)


def _sql_type(hint: Any) -> str | None:
    """The column type of a field; None for JSON."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    plain = [option for option in options if option is not type(None)]
    return _SQL_TYPES.get(plain[0]) if len(plain) == 1 else None


class Pieces:
    """A table of text pieces under a key, for text that is still growing.

    Adding a piece writes that piece alone; the whole is read once, when the text is complete.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def ddl(self, prefix: str) -> list[str]:
        """Statements that create the table of one generation."""
        return [
            f"CREATE TABLE {prefix}{self.name} (stream TEXT, id TEXT, seq INTEGER, text TEXT,"
            " PRIMARY KEY (stream, id, seq)) STRICT, WITHOUT ROWID"
        ]


class _Store:
    """What `Rows` knows about one table."""

    def __init__(self, table: Table[Any], prefix: str) -> None:
        self.table = table
        self.select, self.upsert = table.select(prefix), table.upsert(prefix)
        self.cache: dict[Key, Any] = {}
        self.dirty: dict[Key, Any] = {}


class Rows:
    """The rows of one generation of a projection, as its fold sees and changes them.

    Args:
        connection: Where rows are loaded from and flushed to. Transactions are the caller's.
        prefix: Generation prefix of the table names.
        tables: The projection's tables.
        pieces: Its table of growing texts, if any.
        fresh: The tables are empty, so what is not in memory does not exist.

    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        prefix: str,
        tables: Iterable[Table[Any]],
        pieces: Pieces | None,
        *,
        fresh: bool = False,
    ) -> None:
        self._connection = connection
        self._stores = {table: _Store(table, prefix) for table in tables}
        self._complete = fresh
        self._pieces: dict[Key, list[tuple[int, str]]] = {}
        self._dropped: dict[Key, None] = {}
        self._written: set[Key] = set()
        self._piece_table = f"{prefix}{pieces.name}" if pieces is not None else ""

    def get(self, table: Table[R], *key: Any) -> R | None:
        """Return a row to look at, or None."""
        store = self._stores[table]
        row: R | None = store.cache.get(key)
        return self._load(store, key) if row is None and not self._complete else row

    def edit(self, table: Table[R], *key: Any) -> R | None:
        """Return a row to change in place, or None. The key must stay."""
        store = self._stores[table]
        row: R | None = store.cache.get(key)
        if row is None and not self._complete:
            row = self._load(store, key)
        if row is not None:
            store.dirty[key] = row
        return row

    def _load(self, store: _Store, key: Key) -> Any:
        found = self._connection.execute(store.select, key).fetchone()
        if found is None:
            return None
        row = store.cache[key] = store.table.unpack(found)
        return row

    def add(self, table: Table[R], row: R) -> R:
        """Add a row, in place of the one with the same key if any."""
        store, key = self._stores[table], table.key_of(row)
        store.cache[key] = store.dirty[key] = row
        return row

    def add_piece(self, stream: str, id: str, seq: int, text: str) -> None:
        """Add text at the end of a growing text."""
        self._pieces.setdefault((stream, id), []).append((seq, text))

    def join_pieces(self, stream: str, id: str) -> str:
        """The growing text so far."""
        key = (stream, id)
        texts = [text for _, text in self._pieces.get(key, ())]
        if key not in self._dropped and (key in self._written or not self._complete):
            query = f"SELECT text FROM {self._piece_table} WHERE stream = ? AND id = ? ORDER BY seq"
            texts = [text for (text,) in self._connection.execute(query, key)] + texts
        return "".join(texts)

    def drop_pieces(self, stream: str, id: str) -> None:
        """Forget a growing text: it is complete, or replaced."""
        key = (stream, id)
        self._pieces.pop(key, None)
        if key in self._written or not self._complete:
            self._dropped[key] = None

    def flush(self) -> None:
        """Write what changed. Call inside a transaction; `forget` if that rolls back."""
        execute = self._connection.executemany
        kept = 0
        for store in self._stores.values():
            if store.dirty:
                pack = store.table.pack
                execute(store.upsert, [pack(row) for row in store.dirty.values()])
                store.dirty = {}
            kept += len(store.cache)
        self._flush_pieces()
        if kept > CACHED_ROWS:
            self.forget()

    def _flush_pieces(self) -> None:
        execute = self._connection.executemany
        if self._dropped:
            query = f"DELETE FROM {self._piece_table} WHERE stream = ? AND id = ?"
            execute(query, list(self._dropped))
            self._written.difference_update(self._dropped)
            self._dropped = {}
        if self._pieces:
            new = [(*key, seq, text) for key, some in self._pieces.items() for seq, text in some]
            execute(f"INSERT INTO {self._piece_table} VALUES (?, ?, ?, ?)", new)
            if self._complete:
                self._written.update(self._pieces)
            self._pieces = {}

    def forget(self) -> None:
        """Drop everything in memory, written or not; the tables are the truth again."""
        self._complete = False
        for store in self._stores.values():
            store.cache, store.dirty = {}, {}
        self._pieces, self._dropped, self._written = {}, {}, set()

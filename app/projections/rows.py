"""Rows of a projection: typed tables, and a unit of work between a fold and a database.

A projection's fold sees only `Rows`: rows by key, as structs. They are loaded on first use, kept
in memory, and written by `Rows.flush` with one bulk statement a table, so that a hundred events
about one row cost one statement. The fold stays pure, and the bulk path is the live path.
"""

from __future__ import annotations

import operator
import types
import typing
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

if TYPE_CHECKING:
    from app.projections.database import Connection, Key

__all__ = ["Kind", "Pieces", "Rows", "Table"]

R = TypeVar("R", bound=msgspec.Struct)
Kind = type[int] | type[bool] | type[str] | type[float] | None
"""What a column holds; None: JSON."""

CACHED_ROWS = 20_000
"""Rows kept between two flushes that nothing has touched of late."""


class Table(Generic[R]):
    """A table whose rows are structs: one column for each field.

    ``int``, ``bool``, ``float`` and ``str`` fields become columns of that type; others are JSON.

    Args:
        name: Name without the generation prefix.
        row: Struct of a row.
        key: Fields of the primary key.
        rowid: An integer field that is the table's rowid in SQLite.
        search: A field with a full-text index; the ``rowid`` must then be ``first``.
        also: Indexes: more DDL, with ``{p}`` for the generation prefix.

    """

    def __init__(
        self,
        name: str,
        row: type[R],
        *,
        key: tuple[str, ...],
        rowid: str | None = None,
        search: str | None = None,
        also: tuple[str, ...] = (),
    ) -> None:
        self.name, self.row, self.key, self.rowid, self.also = name, row, key, rowid, also
        self.search = search
        hints = typing.get_type_hints(row)
        self.columns = tuple(field.name for field in msgspec.structs.fields(row))
        self.names = ", ".join(f'"{column}"' for column in self.columns)
        self.kinds: dict[str, Kind] = {column: _kind(hints[column]) for column in self.columns}
        self.texts = tuple(i for i, c in enumerate(self.columns) if self.kinds[c] in (str, None))
        self.json = tuple(i for i, c in enumerate(self.columns) if self.kinds[c] is None)
        self.decoders = {i: msgspec.json.Decoder(hints[self.columns[i]]) for i in self.json}
        self.bools = tuple(i for i, c in enumerate(self.columns) if hints[c] is bool)
        get = operator.attrgetter(*key)
        #: The key of a row.
        self.key_of: Callable[[R], Key] = get if len(key) > 1 else lambda row: (get(row),)
        update = ", ".join(f'"{c}" = excluded."{c}"' for c in self.columns if c not in key)
        self.replace = f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {update}"

    def indexes(self, prefix: str) -> list[str]:
        """Statements that create the indexes of one generation."""
        return [statement.replace("{p}", prefix) for statement in self.also]

    def pack(self, row: R) -> tuple[Any, ...]:
        """A row as databases store it."""
        values = msgspec.structs.astuple(row)
        if not self.json:
            return values
        packed = list(values)
        for i in self.json:
            packed[i] = msgspec.json.encode(packed[i]).decode()
        return tuple(packed)

    def unpack(self, values: Iterable[Any]) -> R:
        """A row from a database."""
        unpacked = list(values)
        for i in self.json:
            unpacked[i] = self.decoders[i].decode(unpacked[i])
        for i in self.bools:
            unpacked[i] = bool(unpacked[i])
        return self.row(*unpacked)


def _kind(hint: Any) -> Kind:
    """The kind of a field's column."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    plain = [option for option in options if option is not type(None)]
    return plain[0] if len(plain) == 1 and plain[0] in (int, bool, str, float) else None


class Piece(msgspec.Struct):
    """A piece of a growing text; pieces stand in the order of ``seq``."""

    stream: str
    id: str
    seq: int
    text: str


class Pieces(Table[Piece]):
    """A table of text pieces under a key, for text that is still growing.

    Adding a piece writes that piece alone; the whole is read once, when the text is complete.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, Piece, key=("stream", "id", "seq"))


class _Store:
    """What `Rows` knows about one table.

    Rows are in ``young``, or in ``old`` when nothing has touched them of late. ``gone`` tells
    which others may be in the table: by the hash of their key's first part; None: any.
    """

    def __init__(self, table: Table[Any], *, fresh: bool) -> None:
        self.table = table
        self.young: dict[Key, Any] = {}
        self.old: dict[Key, Any] = {}
        self.dirty: dict[Key, Any] = {}
        self.removed: dict[Key, None] = {}
        self.gone: set[int] | None = set() if fresh else None

    def age(self) -> None:
        """Let go of what is old; what is young is old from now on."""
        if self.gone is not None:
            self.gone.update([hash(key[0]) for key in self.old.keys() - self.young.keys()])
        self.old, self.young = self.young, {}

    def forget(self) -> None:
        self.young, self.old, self.dirty, self.removed, self.gone = {}, {}, {}, {}, None


class Rows:
    """The rows of one generation of a projection, as its fold sees and changes them.

    Args:
        connection: Where rows are loaded from and flushed to. Transactions are the caller's.
        prefix: Of the generation's tables.
        tables: Its tables.
        pieces: Its table of growing texts, if it has one.
        fresh: The tables are empty, so what is not in memory need not be looked for.

    """

    def __init__(
        self,
        connection: Connection,
        prefix: str,
        tables: tuple[Table[Any], ...],
        pieces: Pieces | None,
        *,
        fresh: bool = False,
    ) -> None:
        self._connection = connection
        self._prefix = prefix
        self._stores = {table: _Store(table, fresh=fresh) for table in tables}
        self._piece_table = pieces
        self._complete = fresh
        self._pieces: dict[Key, list[tuple[int, str]]] = {}
        self._dropped: dict[Key, None] = {}
        self._written: set[Key] = set()

    def get(self, table: Table[R], *key: Any) -> R | None:
        """Return a row to look at, or None."""
        store = self._stores[table]
        row: R | None = store.young.get(key)
        return self._find(store, key) if row is None else row

    def edit(self, table: Table[R], *key: Any) -> R | None:
        """Return a row to change in place, or None. The key must stay."""
        store = self._stores[table]
        row: R | None = store.young.get(key)
        if row is None:
            row = self._find(store, key)
            if row is None:
                return None
        store.dirty[key] = row
        return row

    def _find(self, store: _Store, key: Key) -> Any:
        row = store.old.get(key)
        if row is None:
            if key in store.removed:
                return None
            if store.gone is not None and hash(key[0]) not in store.gone:
                return None
            row = self._connection.load(store.table, self._prefix, key)
            if row is None:
                return None
        store.young[key] = row
        return row

    def add(self, table: Table[R], row: R) -> R:
        """Add a row, in place of the one with the same key if any."""
        store, key = self._stores[table], table.key_of(row)
        store.young[key] = store.dirty[key] = row
        return row

    def remove(self, table: Table[Any], *key: Any) -> None:
        """Drop a row, if there is one."""
        store = self._stores[table]
        for known in (store.young, store.old, store.dirty):
            known.pop(key, None)
        store.removed[key] = None

    def add_pieces(self, stream: str, id: str, pieces: list[tuple[int, str]]) -> None:
        """Add text at the end of a growing text: positions in the log, and what came there."""
        if pieces:
            self._pieces.setdefault((stream, id), []).extend(pieces)

    def join_pieces(self, stream: str, id: str) -> str:
        """The growing text so far."""
        key = (stream, id)
        texts = [text for _, text in self._pieces.get(key, ())]
        if key not in self._dropped and (key in self._written or not self._complete):
            assert self._piece_table is not None
            name = f"{self._prefix}{self._piece_table.name}"
            query = f"SELECT text FROM {name} WHERE stream = ? AND id = ? ORDER BY seq"
            texts = [text for (text,) in self._connection.all(query, *key)] + texts
        return "".join(texts)

    def drop_pieces(self, stream: str, id: str) -> None:
        """Forget a growing text: it is complete, or replaced."""
        key = (stream, id)
        self._pieces.pop(key, None)
        if key in self._written or not self._complete:
            self._dropped[key] = None

    @property
    def changed(self) -> bool:
        """Whether there is anything to flush."""
        pieces = bool(self._pieces or self._dropped)
        return pieces or any(store.dirty or store.removed for store in self._stores.values())

    def flush(self) -> None:
        """Write what changed. Call inside a transaction; `forget` if that rolls back."""
        kept = 0
        for store in self._stores.values():
            if store.removed:
                table = store.table
                self._connection.delete(table, self._prefix, table.key, list(store.removed))
                store.removed = {}
            if store.dirty:
                self._connection.upsert(store.table, self._prefix, store.dirty.values())
                store.dirty = {}
            kept += len(store.young)
        self._flush_pieces()
        if kept > CACHED_ROWS:
            for store in self._stores.values():
                store.age()

    def _flush_pieces(self) -> None:
        if self._dropped:
            assert self._piece_table is not None
            self._connection.delete(
                self._piece_table, self._prefix, ("stream", "id"), list(self._dropped)
            )
            self._written.difference_update(self._dropped)
            self._dropped = {}
        if self._pieces:
            assert self._piece_table is not None
            new = [
                Piece(stream, id, seq, text)
                for (stream, id), some in self._pieces.items()
                for seq, text in some
            ]
            self._connection.upsert(self._piece_table, self._prefix, new)
            if self._complete:
                self._written.update(self._pieces)
            self._pieces = {}

    def forget(self) -> None:
        """Drop everything in memory, written or not; the tables are the truth again."""
        self._complete = False
        for store in self._stores.values():
            store.forget()
        self._pieces, self._dropped, self._written = {}, {}, set()

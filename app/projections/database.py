"""Where read models live: one thin connection, for SQLite and for Postgres.

Everything above speaks to a `Connection`: SQL that both understand, with ``?`` for values, and a
few operations whose SQL differs (tables, bulk writes, search, locks). It blocks; call it in a
thread. Connections may move between threads, one at a time.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from app.events.store import StoreError

if TYPE_CHECKING:
    from app.projections.rows import Table

__all__ = ["Connection", "Moved", "Purpose", "Trouble", "Where", "connect", "is_postgres"]

R = TypeVar("R", bound=msgspec.Struct)
Key = tuple[Any, ...]
Where = str | Path
"""A file of SQLite, or the URL of a Postgres database."""

Purpose = Literal["read", "run", "rebuild"]


class Trouble(StoreError):
    """The database could not do it now: full, locked, or away. It may succeed later."""


class Moved(Trouble):
    """The tables are gone: a rebuild has swapped them for others. Look again which serve."""


class Connection(ABC):
    """A connection to read models.

    Every method may raise `Trouble`; anything else it raises is about the values it was given.
    """

    @property
    @abstractmethod
    def usable(self) -> bool:
        """False once it is lost: close it and make another."""

    @abstractmethod
    def close(self) -> None:
        """Close. Never raises."""

    # ----------------------------------------------------------------------------- queries

    @abstractmethod
    def all(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""

    @abstractmethod
    def run(self, sql: str, *values: Any) -> int:
        """Execute one statement; returns how many rows it changed."""

    def one(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        """Return the first row of a query, or None."""
        rows = self.all(sql, *values)
        return rows[0] if rows else None

    @abstractmethod
    def search(self, table: str, words: str) -> tuple[str, str] | None:
        """Say how rows whose indexed text holds all ``words`` (or beginnings) are found.

        Returns a condition on ``m``, an alias of the table, and its one value; None if ``words``
        has no word.
        """

    # ------------------------------------------------------------------------ transactions

    @abstractmethod
    def begin(self) -> None:
        """Begin to write: one process at a time, others wait."""

    @abstractmethod
    def commit(self) -> None:
        """Commit."""

    @abstractmethod
    def rollback(self) -> None:
        """Take back what was begun, if anything. Never raises."""

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Write for the time of the block; commit at the end, or take back on an error."""
        self.begin()
        try:
            yield
            self.commit()
        except BaseException:
            self.rollback()
            raise

    @abstractmethod
    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Read one consistent moment for the time of the block."""

    @abstractmethod
    def attempt(self) -> contextlib.AbstractContextManager[None]:
        """Take back only what the block wrote if it raises, not the transaction."""

    @abstractmethod
    def lead(self, name: str) -> bool | None:
        """Try to become the only one that does ``name``, for as long as the connection lives.

        False: somebody else is. None: there is no telling, several may be.
        """

    # ------------------------------------------------------------------------------ tables

    @abstractmethod
    def tables(self, prefix: str) -> list[str]:
        """Return the names of the tables that begin with ``prefix``."""

    @abstractmethod
    def create(self, table: Table[Any], prefix: str) -> None:
        """Create a table with its indexes; see `index`."""

    @abstractmethod
    def index(self, tables: Sequence[Table[Any]], prefix: str) -> None:
        """Create what is cheaper to create once the tables are full: their search indexes."""

    @abstractmethod
    def drop(self, names: Sequence[str]) -> None:
        """Drop tables, with whatever belongs to them."""

    @abstractmethod
    def load(self, table: Table[R], prefix: str, key: Key) -> R | None:
        """Read one row by key."""

    @abstractmethod
    def upsert(self, table: Table[R], prefix: str, rows: Collection[R]) -> None:
        """Write rows, in place of those with the same keys."""

    @abstractmethod
    def delete(
        self, table: Table[Any], prefix: str, columns: tuple[str, ...], keys: Collection[Key]
    ) -> None:
        """Delete the rows whose ``columns`` have one of these values."""


def is_postgres(where: Where) -> bool:
    """Whether read models live in Postgres."""
    return isinstance(where, str) and where.startswith(("postgresql://", "postgres://"))


def connect(where: Where, purpose: Purpose = "run") -> Connection:
    """Connect to read models; creates what is missing, unless it is to ``read`` only.

    Raises:
        Trouble: The database is away.
        StartupError: It cannot be opened, or is something else.

    """
    if is_postgres(where):
        from app.projections.postgres import PostgresConnection

        return PostgresConnection(str(where), purpose)
    from app.projections.sqlite import SqliteConnection

    return SqliteConnection(str(where), purpose)

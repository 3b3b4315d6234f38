"""The log in SQLite: WAL, one writing connection that also checkpoints, query-only readers.

Each operation is one hop to a connection's thread, a whole batch included, so a cancelled task
never leaves a transaction open. Power loss is discussed in ``docs/durability.md``.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import aiosqlite

from app.errors import StartupError
from app.events import sqlite_archive as archive
from app.events import sqlite_page
from app.events import sqlite_sql as sql
from app.events.backend import Remembered, Row
from app.events.envelope import Event
from app.events.feed import Feed
from app.events.ids import uuid7
from app.events.ledger import Batch, Found, Missing, State
from app.events.ledgerstore import LedgerStore
from app.events.lockfile import WriterLock
from app.events.migrate import apply, outstanding
from app.events.migration import migrations
from app.events.moves import Catalog, Spans
from app.events.sqlite_errors import (
    database_uri,
    startup_error,
    store_error,
)
from app.events.store import Lease, StoreError

__all__ = ["SqliteBackend", "SqliteStore"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Synchronous = Literal["full", "normal"]

READERS = 3
"""Most reading connections."""

CHECKPOINT_BYTES = 4 << 20
"""Written bytes after which the WAL is copied into the database between two batches."""

TRUNCATE_BYTES = 64 << 20
"""Size of the WAL file at which it is cut back to nothing."""

SCRUB_SECONDS = 2.0
"""How long to wait for readers before giving up to empty the WAL."""

_UNFIT = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError)
"""Errors that say the values are to blame, not the storage."""

EVENT_BYTES = 400
"""What an event adds to the WAL beside its payload, roughly; only paces checkpoints."""

HOUR = 3600 * 10**9


class SqliteBackend:
    """Rows in a SQLite file. Made by `SqliteStore.open`."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self.incarnation = ""
        self._lock = WriterLock(path)
        self._writer: aiosqlite.Connection | None = None
        self._watch: aiosqlite.Connection | None = None
        self._idle: list[aiosqlite.Connection] = []
        self._readers = asyncio.Semaphore(READERS)
        self._unsaved = 0  # bytes written since the last checkpoint
        self._pruned = 0
        self._data_version = 0

    # ------------------------------------------------------------------- opening and closing

    async def open(self, synchronous: Synchronous) -> None:
        """Open the database, migrating it when this process writes.

        Raises:
            StartupError: It is in use, not a database, too new, or cannot be written.

        """
        try:
            if self.writable:
                self._lock.acquire()
                self._writer = await _connect(self.path, mode="rwc")
                await _run(self._writer, _prepare, synchronous)
                self.incarnation = await _run(self._writer, _incarnation)
            else:
                self._watch = await self._open_reader()
                await _run(self._watch, _refuse_other_schema)
                self.incarnation = await _run(self._watch, _incarnation)
                self._data_version = await _run(self._watch, _data_version)
        except BaseException as error:
            await self.aclose()
            if isinstance(error, sqlite3.Error):
                raise startup_error(self.path, error) from error
            raise

    async def aclose(self) -> None:
        """Close readers, then the writer (which empties the WAL), then give the lock back."""
        for _ in range(READERS):  # wait for reads under way
            await self._readers.acquire()
        for conn in (*self._idle, self._watch, self._writer):
            if conn is not None:
                await conn.close()
        self._idle, self._watch, self._writer = [], None, None
        self._lock.release()

    async def _open_reader(self) -> aiosqlite.Connection:
        conn = await _connect(self.path, mode="ro")
        try:
            await _run(conn, execute_all, sql.READER_PRAGMAS)
        except BaseException:
            await conn.close()
            raise
        return conn

    # ------------------------------------------------------------------------------- writing

    async def state(self) -> State:
        """Read the end of the log."""
        if self._writer is None:
            return State(head=await self.head())
        return await self._write(_fresh_state)

    async def lookup(self, missing: Missing) -> Found:
        """Look keys up for the ledger."""
        return await self._write(sql.look_up, missing)

    async def write(self, batch: Batch) -> None:
        """Write a batch in one transaction."""
        await self._write(sql.write_batch, batch, archive.write_moves)
        self._unsaved += sum(len(event.data) + EVENT_BYTES for event in batch.events) + 8192

    async def adopt(self, incarnation: str, *, empty: bool) -> bool:
        """Store another incarnation."""
        done = await self._write(_adopt, incarnation, empty)
        self.incarnation = incarnation if done else self.incarnation
        return done

    async def scrub(self) -> bool:
        """Empty the WAL, where pages as they were before lie until then."""
        self._unsaved = 0
        return await self._write(_empty_wal)

    async def maintain(self) -> None:
        """Checkpoint if it is time: after the callers were answered, before the next batch."""
        if self._unsaved >= CHECKPOINT_BYTES:
            self._unsaved = 0
            await self._save("TRUNCATE" if self._wal_bytes() > TRUNCATE_BYTES else "PASSIVE")

    async def tidy(self, forget: int) -> None:
        """Forget old commands, now and then; copy the WAL into the database and cut it."""
        if forget - self._pruned > HOUR:
            self._pruned = forget
            await self._write(_prune, forget)
        self._unsaved = 0
        await self._save("TRUNCATE")

    async def _save(self, mode: str) -> None:
        try:
            await self._write(checkpoint, mode)
        except StoreError:  # the data is safe in the WAL; the next one tries again
            log.warning("checkpoint of %s failed", self.path, exc_info=True)

    def _wal_bytes(self) -> int:
        try:
            return self.path.with_name(self.path.name + "-wal").stat().st_size
        except OSError:
            return 0

    async def _write(self, function: Callable[..., T], *args: Any) -> T:
        assert self._writer is not None
        try:
            return await _run(self._writer, function, *args)
        except _UNFIT as error:
            raise ValueError(f"an event cannot be stored: {error}") from error
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error

    # ------------------------------------------------------------------------------- reading

    @asynccontextmanager
    async def _reader(self) -> Any:
        async with self._readers:
            conn = self._idle.pop() if self._idle else await self._open_reader()
            try:
                yield conn
            finally:
                self._idle.append(conn)

    async def _read(self, function: Callable[..., T], *args: Any) -> T:
        try:
            async with self._reader() as conn:
                return await _run(conn, function, *args)
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error

    async def select(
        self, after: int, until: int, stream: str | None, types: Sequence[str] | None, limit: int
    ) -> list[Event]:
        """Events with ``after < position <= until`` in order."""
        return await self._read(sqlite_page.select, after, until, stream, types, limit)

    async def rows(self, after: int, limit: int) -> list[Row | StoreError]:
        """Rows as stored, even damaged ones."""
        return await self._read(sql.select_rows, after, limit)

    async def sound(self, after: int, until: int) -> list[bytes] | None:
        """Leaf hashes of rows that are as they were written; None if any may not be."""
        return await self._read(sql.select_sound, after, until)

    async def leaves(self, after: int, until: int) -> list[bytes]:
        """Leaf hashes of ``after < seq <= until``."""
        return await self._read(sql.select_leaves, after, until)

    async def hot(
        self, after: int, until: int, stream: str | None, types: Sequence[str] | None, limit: int
    ) -> list[Row]:
        """Rows of the table alone, as `select` selects events."""
        return await self._read(archive.select_hot, after, until, stream, types, limit)

    async def catalog(self, after: int, until: int, stream: str | None) -> Catalog:
        """Segments with events at ``after < position <= until``."""
        return await self._read(archive.select_catalog, after, until, stream)

    async def spans(self, object: str) -> Spans | None:
        """What the catalog says of a segment's streams."""
        return await self._read(archive.select_spans, object)

    async def uploads(self) -> list[str]:
        """Objects that no segment refers to."""
        return await self._read(archive.select_uploads)

    async def head(self) -> int:
        """Highest seq stored."""
        return await self._read(_scalar, sql.SELECT_HEAD)

    async def version(self, stream: str) -> int:
        """Highest version of a stream stored."""
        return await self._read(_scalar, sql.SELECT_VERSION, (stream,))

    async def leases(self, stream: str | None, open_only: bool) -> list[Lease]:
        """Rows of the request table, oldest first."""
        return await self._read(sql.select_leases, stream, open_only)

    async def waiting(self, tenant: str) -> tuple[int, int]:
        """How many requests are queued: of a tenant, and in all."""
        return await self._read(sql.count_waiting, tenant)

    async def commands(self, after: str, limit: int) -> list[Remembered]:
        """Commands that took effect lately, ordered by id."""
        return await self._read(sql.select_commands, after, limit)

    async def check(self) -> list[str]:
        """Complaints of SQLite about the file's structure."""
        return await self._read(sql.integrity)

    async def changed(self, seconds: float) -> bool:
        """Poll ``PRAGMA data_version`` every 2 ms, up to ``seconds``, in the reader's thread."""
        assert self._watch is not None
        seen = self._data_version
        try:
            self._data_version = await _run(self._watch, _await_change, seen, seconds)
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error
        return self._data_version != seen


class SqliteStore(LedgerStore):
    """The event store in a SQLite file."""

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        synchronous: Synchronous = "full",
        read_only: bool = False,
        feed: Feed | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> SqliteStore:
        """Open a log, creating it unless ``read_only``.

        Args:
            path: The database file.
            synchronous: ``full`` loses nothing acknowledged in a power cut; ``normal`` may lose
                the last commits. Neither loses anything when the process is killed.
            read_only: Read and follow while another process writes.
            feed: Memory for recent events.
            clock: Gives nanoseconds since the epoch.

        Raises:
            StartupError: It cannot be opened; the message says why.

        """
        backend = SqliteBackend(path, writable=not read_only)
        await backend.open(synchronous)
        store = cls(backend, feed=feed, clock=clock)
        try:
            await store.start()
        except BaseException:
            await backend.aclose()
            raise
        return store


# ------------------------------------------------------------- run on a connection's thread


async def _connect(path: Path, *, mode: str) -> aiosqlite.Connection:
    uri = database_uri(path, mode)
    conn = aiosqlite.connect(uri, uri=True, isolation_level=None, cached_statements=256)
    conn._thread.daemon = True  # a store that was not closed must not hang the interpreter
    try:
        return await conn
    except BaseException:
        conn._thread.join(5)  # it is ending, and must not outlive the loop it answers to
        raise


async def _run(conn: aiosqlite.Connection, function: Callable[..., T], *args: Any) -> T:
    """Run a function of the plain connection on its thread: one hop, whatever it does."""
    result: T = await conn._execute(lambda: function(conn._conn, *args))  # type: ignore[no-untyped-call]
    return result


def _prepare(conn: sqlite3.Connection, synchronous: str) -> None:
    execute_all(conn, [pragma.format(synchronous=synchronous.upper()) for pragma in sql.PRAGMAS])
    apply(conn, migrations("sqlite"))
    conn.execute(sql.INSERT_LOG, (uuid7(), time.time_ns()))
    if _scalar(conn, "PRAGMA user_version") == sql.BACKUP:  # it gives positions out again
        conn.execute("BEGIN IMMEDIATE")
        conn.execute(sql.ADOPT, (uuid7(),))
        conn.execute("PRAGMA user_version = 0")
        conn.execute("COMMIT")


def _refuse_other_schema(conn: sqlite3.Connection) -> None:
    pending = outstanding(conn, migrations("sqlite"))
    if pending:
        raise StartupError(
            f"the database lacks migration {pending[0]}", hint="run: everlog migrate"
        )


def execute_all(conn: sqlite3.Connection, statements: Sequence[str]) -> None:
    for statement in statements:
        conn.execute(statement).fetchall()


def _scalar(conn: sqlite3.Connection, statement: str, args: Sequence[Any] = ()) -> int:
    value: int = conn.execute(statement, args).fetchone()[0]
    return value


def _incarnation(conn: sqlite3.Connection) -> str:
    row = conn.execute(sql.SELECT_INCARNATION).fetchone()
    if row is None:
        raise StartupError("the database has no log", hint="run: everlog migrate")
    return str(row[0])


def _adopt(conn: sqlite3.Connection, incarnation: str, empty: bool) -> bool:
    statement = sql.ADOPT_IF_EMPTY if empty else sql.ADOPT
    return conn.execute(statement, (incarnation,)).rowcount == 1


def _data_version(conn: sqlite3.Connection) -> int:
    return _scalar(conn, "PRAGMA data_version")


def _await_change(conn: sqlite3.Connection, seen: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while (version := _data_version(conn)) == seen and time.monotonic() < deadline:
        time.sleep(0.002)
    return version


def _fresh_state(conn: sqlite3.Connection) -> State:
    if conn.in_transaction:  # a failed COMMIT may leave it open
        conn.execute("ROLLBACK")
    return sql.read_state(conn)


def _prune(conn: sqlite3.Connection, before: int) -> None:
    conn.execute(sql.PRUNE_COMMANDS, (before,))


def _empty_wal(conn: sqlite3.Connection) -> bool:
    conn.execute(f"PRAGMA busy_timeout = {round(SCRUB_SECONDS * 1000)}")
    try:
        busy: int = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        conn.execute(sql.PRAGMAS[0])
    return not busy


def checkpoint(conn: sqlite3.Connection, mode: str) -> None:
    conn.execute("PRAGMA busy_timeout = 0")  # never wait for readers: writers wait behind us
    try:
        conn.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    finally:
        conn.execute(sql.PRAGMAS[0])

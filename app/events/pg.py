"""Connections to Postgres: how they are made, and what their errors mean."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Any

import asyncpg

from app.errors import EverlogError, InputError, StartupError
from app.events.store import StoreError
from app.events.url import parse_url

__all__ = [
    "ERRORS",
    "MINIMUM",
    "close",
    "connect",
    "is_transient",
    "startup_error",
    "store_error",
    "watch",
]

MINIMUM = 150_000
"""Oldest server version that works."""

CONNECT_SECONDS = 10.0

STATEMENT_SECONDS = 30
"""After so long the server gives a statement up."""

ANSWER_SECONDS = STATEMENT_SECONDS + 5.0
"""After so long without the server's answer a connection counts as lost: a network that has
forgotten it says nothing."""

SETTINGS = {
    "application_name": "everlog",
    # What a lock protects must be seen once it is held; other levels look before.
    "default_transaction_isolation": "read committed",
    "jit": "off",  # compiling costs more than any statement of ours takes
    "statement_timeout": f"{STATEMENT_SECONDS}s",
    "lock_timeout": "15s",
    "idle_in_transaction_session_timeout": "30s",
    "idle_session_timeout": "0",  # who listens, or holds a lock, has nothing to say for long
    "client_encoding": "UTF8",
}

#: Options of a TCP connection: probed when silent for 5 s, and given up when nothing sent was
#: received for 15 s (in ms).
_WIRE = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 3,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 15_000,
}

#: SQLSTATE classes and codes of what goes by itself: connection lost, server starting or stopping,
#: too many connections, serialization, deadlock, lock not available, cancelled by a timeout.
_TRANSIENT = ("08", "57P", "53300", "40001", "40P01", "55P03", "57014", "25P03")

_LOST = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what asyncpg says when a connection dies between two messages
    asyncpg.PostgresConnectionError,
)

ERRORS: tuple[type[Exception], ...] = (*_LOST, asyncpg.PostgresError)
"""What can come of talking to Postgres."""


async def connect(dsn: str, answer: float | None = None, /, **settings: str) -> Any:
    """Open a connection.

    Args:
        dsn: ``postgresql://...``; what it leaves out comes from the usual ``PG*`` variables.
        answer: Longest time for a statement whose caller names none, in seconds.
        settings: Server settings in place of the usual ones.

    Raises:
        InputError: The URL is malformed.
        OSError, asyncpg.PostgresError: See `startup_error`.

    """
    try:
        conn = await asyncpg.connect(
            dsn,
            timeout=CONNECT_SECONDS,
            command_timeout=answer,
            server_settings=SETTINGS | settings,
        )
    except ssl.SSLError:
        raise  # a certificate that is not trusted is a ValueError too
    except (asyncpg.ClientConfigurationError, ValueError) as error:
        raise InputError(str(error), field="database.url") from error
    await watch(conn)
    return conn


async def watch(conn: Any) -> None:
    """Have the machine notice when the server's machine or the way to it is gone.

    Without this a network that drops everything goes unnoticed for a quarter of an hour by who has
    sent something, and for ever by who waits.
    """
    wire = conn._transport.get_extra_info("socket")
    if wire is None or wire.family not in (socket.AF_INET, socket.AF_INET6):
        return
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _WIRE.items():
        with suppress(AttributeError, OSError):  # not every system has them
            wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def close(conn: Any) -> None:
    """Close a connection, politely if the server answers."""
    try:
        await conn.close(timeout=2)
    except ERRORS:
        conn.terminate()


def is_transient(error: BaseException) -> bool:
    """Whether the same may work in a moment: the server is away, busy, or starting."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(_TRANSIENT)
    return isinstance(error, _LOST) and not isinstance(error, ssl.SSLError)


def store_error(error: BaseException) -> StoreError:
    """What went wrong, for callers of the store."""
    text = str(error) or type(error).__name__
    if is_transient(error):
        return StoreError(f"Postgres does not answer: {text}")
    return StoreError(f"Postgres: {text}", hint=_hint(error))


def startup_error(dsn: str, error: BaseException) -> EverlogError:
    """Why a database cannot be opened, and what to do next."""
    if isinstance(error, EverlogError):
        return error
    shown, text = parse_url(dsn).shown, str(error) or type(error).__name__
    return StartupError(f"cannot open {shown}: {text}", hint=_hint(error))


_HINTS: tuple[tuple[type[BaseException], str], ...] = (
    (asyncpg.InvalidPasswordError, "Check user and password (PGUSER, PGPASSWORD)."),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        "Check the user, and pg_hba.conf there.",
    ),
    (asyncpg.InvalidCatalogNameError, "Create the database: createdb NAME"),
    (asyncpg.TooManyConnectionsError, "Raise max_connections, or lower database.pool."),
    (
        asyncpg.InsufficientPrivilegeError,
        "The user needs CREATE on the schema, and all rights on the log's tables (best: own them).",
    ),
    (asyncpg.DiskFullError, "Free space on the database server."),
    (asyncpg.ReadOnlySQLTransactionError, "This is a standby: connect to the primary."),
    (asyncpg.CannotConnectNowError, "The server is starting or stopping; try again in a moment."),
    (ssl.SSLError, "Check sslmode and sslrootcert in database.url."),
    (ConnectionRefusedError, "Is the server running, and are host and port right?"),
    (TimeoutError, "Is the server reachable from here?"),
    (OSError, "Are host and port right?"),
)


def _hint(error: BaseException) -> str | None:
    return next((hint for kind, hint in _HINTS if isinstance(error, kind)), None)

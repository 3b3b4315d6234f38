"""WebSockets on uvicorn's port: real ``websockets`` connections, handed over at the Upgrade.

uvicorn parses the HTTP request, sees the Upgrade, and gives the transport to the class in
``Config.ws``. `Hub.protocol` makes that class: a ``ServerConnection`` without a ``Server``.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
from collections.abc import Awaitable, Callable, Container
from typing import Any, cast

from websockets.asyncio.connection import Connection as BaseConnection
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from app.transport.origin import Gate
from app.transport.protocol import CloseCode

__all__ = ["Hub", "Socket"]

log = logging.getLogger(__name__)
frames_log = logging.getLogger(f"{__name__}.frames")
frames_log.setLevel(logging.WARNING)  # below that, websockets reports every connection and frame

HANDSHAKE_SECONDS = 10
PING_SECONDS = 20
CLOSE_SECONDS = 5
MAX_QUEUE = 4
"""Frames read ahead of the handler; the next one waits in the kernel."""
WRITE_LIMIT = 32_768
"""Bytes a socket buffers before writers wait."""


class Socket(ServerConnection):
    """One WebSocket. Frames go out as bytes that are already JSON."""

    hub: Hub

    def __init__(self, hub: Hub) -> None:
        super().__init__(
            # Without extensions: permessage-deflate would cost 50 KB a connection.
            ServerProtocol(max_size=hub.max_frame, logger=frames_log),
            cast(Any, hub),  # a connection asks its Server only whether it is serving
            ping_interval=PING_SECONDS,
            ping_timeout=PING_SECONDS,
            close_timeout=CLOSE_SECONDS,
            max_queue=MAX_QUEUE,
            write_limit=WRITE_LIMIT,
        )
        self.hub = hub
        self.foreign = False
        """Whether a page of another site opened it."""
        self.user: str | None = None
        """Who it acts for; None until it was welcome. Nothing is pushed to it before."""
        self._owed: dict[str, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake (asyncio.Protocol)."""
        BaseConnection.connection_made(self, transport)  # ServerConnection's wants a Server
        self.hub.start(self)

    def resume_writing(self) -> None:
        """Send what `push` held back (asyncio.Protocol)."""
        super().resume_writing()
        owed, self._owed = self._owed, {}
        for key, data in owed.items():
            self.push(key, data)

    @property
    def authorization(self) -> str | None:
        """The ``Authorization`` header it came with; None if there is none, or several."""
        if self.request is None:
            return None
        with contextlib.suppress(LookupError):  # websockets' MultipleValuesError
            return self.request.headers.get("Authorization")
        return None

    def dismiss(self, code: int, reason: str) -> None:
        """Close it soon, without waiting."""
        self._closing = self.loop.create_task(self.close(code, reason))

    async def write(self, data: bytes) -> None:
        """Send a text frame; wait while the client reads too slowly.

        The same as ``send(data, text=True)`` without its two context managers, which cost more
        than the frame.

        Raises:
            ConnectionClosed: The connection is closing or closed.

        """
        self._put(data)
        if self.paused:
            try:
                await self.drain()
            except OSError as error:
                raise ConnectionClosedError(None, None) from error

    def push(self, key: str, data: bytes) -> None:
        """Send a text frame without waiting.

        To a client that does not keep up it goes later, and then only the last of its ``key``.
        """
        if self.user is None or self.protocol.state is not State.OPEN:
            return
        if self.paused:
            self._owed[key] = data
        else:
            self._put(data)

    def _put(self, data: bytes) -> None:
        protocol = self.protocol
        if protocol.state is not State.OPEN:
            raise ConnectionClosedError(None, None)
        protocol.send_text(data)
        self.send_data()


class Hub:
    """The open sockets.

    Args:
        handler: Called with each socket after the handshake; the socket is closed when it returns.
        gate: Checks of Host and Origin.
        max_frame: Largest message in bytes a client may send.
        path: The only path WebSockets are served on.

    """

    def __init__(
        self,
        handler: Callable[[Socket], Awaitable[None]],
        *,
        gate: Gate,
        max_frame: int,
        path: str = "/ws",
    ) -> None:
        self.open: set[Socket] = set()
        self.max_frame = max_frame
        self._handler = handler
        self._gate = gate
        self._path = path
        self._serving = True
        self._tasks: set[asyncio.Task[None]] = set()

    def protocol(self) -> type[asyncio.Protocol]:
        """Return the class to give to ``uvicorn.Config(ws=...)``."""
        hub = self

        class Upgraded(Socket):
            def __init__(self, config: object, server_state: object, app_state: object) -> None:
                super().__init__(hub)

        return Upgraded

    def is_serving(self) -> bool:
        """Whether new sockets are taken; asked by websockets during a handshake."""
        return self._serving

    def start(self, socket: Socket) -> None:
        """Run a new socket in a task of its own."""
        task = socket.loop.create_task(self._run(socket))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def broadcast(
        self, key: str, data: bytes, *, users: Container[str | None] | None = None
    ) -> None:
        """Send a frame to every socket (of some users), without waiting for any."""
        for socket in self.open:
            if users is None or socket.user in users:
                socket.push(key, data)

    async def close(self, code: int, reason: str, *, timeout: float) -> None:
        """Take no more sockets, close the open ones, and wait for their handlers.

        What has not ended after ``timeout`` seconds is cut off.
        """
        self._serving = False
        closing = [asyncio.ensure_future(s.close(code, reason)) for s in self.open]
        waiting = [*closing, *self._tasks]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for socket in list(self.open):
            socket.transport.abort()

    async def _run(self, socket: Socket) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await socket.handshake(self._check, server_header=None)
        except TimeoutError:
            pass
        if socket.state is not State.OPEN:
            if not socket.connection_lost_waiter.done():
                socket.transport.close()
            return
        if socket.foreign:
            await socket.close(CloseCode.ORIGIN, "this origin may not connect: see server.origins")
            return
        self.open.add(socket)
        socket.start_keepalive()
        try:
            await self._handler(socket)
            await socket.close()
        except ConnectionClosed:
            pass
        except Exception:
            log.exception("A WebSocket handler failed")
            await socket.close(CloseCode.INTERNAL, "internal error")
        finally:
            self.open.discard(socket)

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        """Look at a handshake before it becomes a WebSocket (websockets' process_request)."""
        assert isinstance(connection, Socket)
        try:
            host, origin = request.headers.get("Host"), request.headers.get("Origin")
        except LookupError:  # websockets' MultipleValuesError
            return connection.respond(http.HTTPStatus.BAD_REQUEST, "Host or Origin twice.\n")
        if request.path.partition("?")[0] != self._path:
            return connection.respond(
                http.HTTPStatus.NOT_FOUND, f"WebSockets are at {self._path}.\n"
            )
        if not self._gate.host(host):
            log.warning("Refused a WebSocket for host %r; see server.origins", host)
            return connection.respond(
                http.HTTPStatus.FORBIDDEN,
                "This server does not go by that name; see the setting server.origins.\n",
            )
        # A browser hides the status of a failed handshake from the page, but not a close code.
        connection.foreign = not self._gate.origin(origin, host)
        return None

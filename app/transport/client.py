"""A client of the protocol in Python: for the command line, and for tests.

It reconnects by itself, opens its threads again exactly where they stood, and sends commands
that were not answered again; each takes effect once. What it yields is in order, without a hole.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from app.errors import EverlogError, InputError
from app.events.ids import uuid7
from app.transport import protocol as wire
from app.transport.cursor import ClientCursor
from app.transport.protocol import CloseCode, encode

__all__ = ["Client", "ConnectFailed", "Followed", "Refusal"]

MAX_FRAME = 64 << 20
READ_AHEAD = 64
"""Frames of a thread that are kept for a slow consumer before the socket is left alone."""
FIRST_WAIT, LONGEST_WAIT = 0.05, 5.0

Followed = wire.Item | wire.Reset | wire.Live
_Read = wire.Events | wire.Reset | wire.Live


class Refusal(EverlogError):
    """The server refused a frame; ``code`` and ``field`` as in ``refuse``."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.code = code
        self.field = field


class ConnectFailed(EverlogError):
    """There is no server, or it will not have us."""


class _Thread:
    """A thread being followed: its cursor, and frames its consumer has not taken yet."""

    __slots__ = ("cursor", "error", "frames")

    def __init__(self, after: int, incarnation: str | None) -> None:
        self.cursor = ClientCursor(after, incarnation)
        self.frames: asyncio.Queue[_Read | None] = asyncio.Queue(READ_AHEAD)
        self.error: Exception | None = None

    async def take(self) -> _Read:
        """Return the next frame; raises ``error`` after the last."""
        while self.error is None or not self.frames.empty():
            frame = await self.frames.get()
            if frame is not None:
                return frame
        raise self.error

    def fail(self, error: Exception) -> None:
        """Let nothing follow what was read."""
        self.error = error
        if self.frames.empty():
            self.frames.put_nowait(None)  # wakes a waiting consumer


class _Pending:
    """A command without an answer yet."""

    __slots__ = ("answer", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.answer: asyncio.Future[wire.Ack] = asyncio.get_running_loop().create_future()


class Client:
    """A connection that outlives its sockets.

    Args:
        url: Of the server, such as ``http://127.0.0.1:8000``.
        patience: Seconds to go on trying while there is no server; from the first failure.
        on_notice: Called with every notice.
        token: An API key, where the server needs one.

    Use as ``async with Client(url) as client``; entering connects.

    Raises:
        InputError: The URL is not that of a server.
        ConnectFailed: On entering, or from every wait when it gives up later.

    """

    def __init__(
        self,
        url: str,
        *,
        patience: float = 30.0,
        on_notice: Callable[[wire.Notice], None] | None = None,
        token: str | None = None,
    ) -> None:
        self._token = token
        parts = urlsplit(url)
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        if scheme not in ("ws", "wss") or not parts.hostname:
            raise InputError(
                f"{url!r} is not the URL of a server", field="url", hint="http://host:port"
            )
        self._url = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/ws"
        self._local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        self._patience = patience
        self._on_notice = on_notice
        self._threads: dict[str, _Thread] = {}
        self._pending: dict[str, _Pending] = {}
        self._pings: dict[int, asyncio.Future[wire.Pong]] = {}
        self._socket: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self.welcome: wire.Welcome
        """The server's latest greeting."""
        self.connections = 0
        """How often it has connected."""

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        self._task = loop.create_task(self._run(ready), name="everlog-client")
        try:
            await ready
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -------------------------------------------------------------------------- following

    async def follow(
        self, thread: str, *, after: int = 0, incarnation: str | None = None
    ) -> AsyncGenerator[Followed, None]:
        """Iterate over a thread's items after a version, for ever, through reconnects.

        Also yields `Reset` (replace what you have) and `Live` (caught up). Close the iterator,
        for one with ``contextlib.aclosing``, to stop following.

        Raises:
            Refusal: The server will not show the thread.

        """
        if thread in self._threads:
            raise ValueError(f"thread {thread} is followed already")
        followed = self._threads[thread] = _Thread(after, incarnation)
        try:
            await self._open(thread, followed)
            while True:
                frame = await followed.take()
                if isinstance(frame, wire.Events):
                    for item in frame.items:
                        yield item
                else:
                    yield frame
        finally:
            del self._threads[thread]
            await self._send(encode(wire.Close(thread=thread)))

    async def _open(self, thread: str, followed: _Thread) -> None:
        cursor = followed.cursor
        frame = wire.Open(thread=thread, after=cursor.version, incarnation=cursor.incarnation)
        await self._send(encode(frame))

    # --------------------------------------------------------------------------- commands

    async def post(
        self,
        thread: str,
        content: str,
        *,
        id: str | None = None,
        message: str | None = None,
        parent: str | None = None,
        params: dict[str, Any] | None = None,
    ) -> wire.Ack:
        """Post a message; returns once it is committed."""
        return await self.command(
            wire.Post(
                id=id or uuid7(),
                thread=thread,
                content=content,
                message=message,
                parent=parent,
                params=params,
            )
        )

    async def stop(self, thread: str) -> wire.Ack:
        """Stop what runs in a thread."""
        return await self.command(wire.Stop(id=uuid7(), thread=thread))

    async def command(self, frame: wire.Command) -> wire.Ack:
        """Send a command until it is answered.

        Raises:
            Refusal: The server refused it; nothing has changed.

        """
        pending = self._pending[frame.id] = _Pending(encode(frame))
        try:
            self._fail_if_ended()
            await self._send(pending.data)
            return await pending.answer
        finally:
            self._pending.pop(frame.id, None)

    async def ping(self, n: int) -> wire.Pong:
        """Ask for the heads of the followed threads. Not repeated on reconnect."""
        answer: asyncio.Future[wire.Pong] = asyncio.get_running_loop().create_future()
        self._pings[n] = answer
        try:
            self._fail_if_ended()
            await self._send(encode(wire.Ping(n=n)))
            return await answer
        finally:
            self._pings.pop(n, None)

    def cut(self) -> None:
        """Drop the socket without a closing handshake, as a broken network does. It reconnects."""
        if self._socket is not None:
            self._socket.transport.abort()

    def _fail_if_ended(self) -> None:
        if self._task is None or self._task.done():
            raise ConnectFailed("the connection was given up")

    async def _send(self, data: bytes) -> None:
        """Send if connected; on the next connection everything unanswered is sent anyway."""
        if self._socket is not None:
            with contextlib.suppress(ConnectionClosed):
                await self._socket.send(data, text=True)

    # ------------------------------------------------------------------------- connection

    async def _run(self, ready: asyncio.Future[None]) -> None:
        """Connect, read until the socket is lost, and so on, until patience ends."""
        try:
            await self._keep_connected(ready)
        except EverlogError as error:
            self._give_up(error)
            if ready.done():
                return
            ready.set_exception(error)
        except asyncio.CancelledError:
            self._give_up(ConnectFailed("the client was closed"))
            ready.cancel()
            raise

    async def _keep_connected(self, ready: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        failing_since: float | None = None
        wait = FIRST_WAIT
        while True:
            try:
                await self._session(ready)
            except InvalidStatus as error:
                status = error.response.status_code
                if status < 500:
                    raise ConnectFailed(f"{self._url} answered {status}") from None
                reason = f"it answered {status}"
            except ConnectionClosed as error:
                code = error.rcvd.code if error.rcvd else None
                if error.rcvd is not None and code == CloseCode.KEY:
                    raise ConnectFailed(
                        f"the server says: {error.rcvd.reason}",
                        hint="Make a key with `everlog keys create NAME`, and give it with --key or"
                        " EVERLOG_KEY.",
                    ) from None
                if code in (CloseCode.PROTOCOL, CloseCode.POLICY):
                    raise ConnectFailed(f"the server closed: {error}") from None
                failing_since, wait, reason = None, FIRST_WAIT, "the connection was lost"
            except (OSError, TimeoutError, WebSocketException) as error:
                reason = str(error) or type(error).__name__
            now = loop.time()
            failing_since = now if failing_since is None else failing_since
            if now - failing_since >= self._patience or self.connections == 0:
                raise ConnectFailed(
                    f"No server at {self._url}: {reason}", hint="Start one: everlog serve"
                )
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(2 * wait, LONGEST_WAIT)

    async def _session(self, ready: asyncio.Future[None]) -> None:
        """One socket's life. Always ends with an exception."""
        async with connect(
            self._url,
            compression=None,
            max_size=MAX_FRAME,
            proxy=None if self._local else True,
            close_timeout=2,
        ) as socket:
            await socket.send(
                encode(wire.Hello(protocol=wire.PROTOCOL, token=self._token)), text=True
            )
            welcome = wire.decode_server(await socket.recv(decode=False))
            if not isinstance(welcome, wire.Welcome):
                raise ConnectFailed(f"expected welcome, got {type(welcome).__name__.lower()}")
            self.welcome = welcome
            self.connections += 1
            try:
                self._socket = socket
                for thread, followed in list(self._threads.items()):
                    await self._open(thread, followed)
                for pending in list(self._pending.values()):
                    await socket.send(pending.data, text=True)
                if not ready.done():
                    ready.set_result(None)
                while True:
                    await self._take(wire.decode_server(await socket.recv(decode=False)))
            finally:
                self._socket = None

    async def _take(self, frame: wire.ServerFrame) -> None:
        match frame:
            case wire.Events():
                await self._events(frame)
            case wire.Reset() if followed := self._threads.get(frame.thread):
                followed.cursor.reset(frame, self.welcome.incarnation)
                await followed.frames.put(frame)
            case wire.Live() if followed := self._threads.get(frame.thread):
                await followed.frames.put(frame)
            case wire.Ack() if pending := self._pending.get(frame.id):
                if not pending.answer.done():
                    pending.answer.set_result(frame)
            case wire.Refuse():
                await self._refused(frame)
            case wire.Pong() if ping := self._pings.get(frame.n):
                if not ping.done():
                    ping.set_result(frame)
            case wire.Notice() if self._on_notice is not None:
                self._on_notice(frame)

    async def _events(self, frame: wire.Events) -> None:
        followed = self._threads.get(frame.thread)
        if followed is None:
            return
        verdict = followed.cursor.events(frame)
        if verdict == "apply":
            followed.cursor.incarnation = self.welcome.incarnation
            await followed.frames.put(frame)
        elif verdict == "reopen":
            await self._open(frame.thread, followed)

    async def _refused(self, frame: wire.Refuse) -> None:
        error = Refusal(frame.code, frame.message, frame.field)
        pending = self._pending.get(frame.id) if frame.id else None
        followed = self._threads.get(frame.thread) if frame.thread else None
        if pending is not None:
            # While the server goes down nothing changes; the command is sent to the next one.
            if frame.code != "draining" and not pending.answer.done():
                pending.answer.set_exception(error)
        elif followed is not None:
            followed.fail(error)

    def _give_up(self, error: EverlogError) -> None:
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_exception(error)
        for ping in self._pings.values():
            if not ping.done():
                ping.set_exception(error)
        for followed in self._threads.values():
            followed.fail(error)

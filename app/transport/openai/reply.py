"""The response to a request that the engine answers: whole or as a stream, cancelled with it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import anyio
import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import EverlogError, cause
from app.events.catalogue import Payload
from app.transport.openai import errors, sse
from app.transport.openai.active import Active, shutting_down
from app.transport.openai.call import Call
from app.transport.openai.errors import ApiError

__all__ = ["PING_SECONDS", "Answer", "Reply"]

log = logging.getLogger(__name__)

PING_SECONDS = 15.0
"""Longest silence of a stream; then comes a comment."""


class Answer(Protocol):
    """What the events of a call become. Pure."""

    def opening(self) -> bytes:
        """First frames of the stream."""
        ...

    def feed(self, index: int, payload: Payload) -> bytes:
        """Frames that say what happened to a request."""
        ...

    def closing(self) -> bytes:
        """Last frames, when all requests have ended."""
        ...

    def broken(self, error: ApiError) -> bytes:
        """Last frames of a stream that ends badly."""
        ...

    def body(self) -> dict[str, Any]:
        """The whole answer, when all requests have ended."""
        ...


class Reply(Response):
    """Queues a call, and answers with what becomes of it.

    The head of a stream waits for the first sign of the engine, so that a request that cannot be
    served gets a status that says so. When the client goes, its requests are cancelled.

    Args:
        call: The engine's requests.
        answer: What to make of them.
        stream: Whether to send it as it comes.
        active: The other ones of this process.
        headers: To send.

    """

    def __init__(
        self,
        call: Call,
        answer: Answer,
        *,
        stream: bool,
        active: Active,
        headers: Mapping[str, str],
    ) -> None:
        self.background = None
        self._call = call
        self._answer = answer
        self._stream = stream
        self._active = active
        self._extra = dict(headers)
        self._lock = anyio.Lock()
        self._begun = False
        self._last = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it (ASGI)."""
        with self._active.one():
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._watch, receive, group.cancel_scope.cancel)
                    group.start_soon(self._interrupt)
                    if self._stream:
                        group.start_soon(self._keep_alive, send)
                    await self._serve(send)
                    group.cancel_scope.cancel()
            except BaseExceptionGroup as failures:
                reason = cause(failures)
                if not isinstance(reason, Exception):
                    raise reason from None
                await self._fail(reason, scope, receive, send)
            finally:
                if not self._call.ended:
                    await self._call.cancel()

    # ------------------------------------------------------------------------------ tasks

    async def _watch(self, receive: Receive, gone: Callable[[], None]) -> None:
        """Wait until the client is gone."""
        while (await receive())["type"] != "http.disconnect":
            pass
        gone()

    async def _interrupt(self) -> None:
        await self._active.over.wait()
        raise shutting_down()

    async def _keep_alive(self, send: Send) -> None:
        self._last = time.monotonic()
        while True:
            await asyncio.sleep(max(0.0, self._last + PING_SECONDS - time.monotonic()) + 0.001)
            if time.monotonic() - self._last >= PING_SECONDS:
                await self._write(send, sse.PING)

    async def _serve(self, send: Send) -> None:
        await self._call.queue()
        if self._stream:
            await self._call.follow(self._forward(send))
            await self._write(send, self._answer.closing(), more=False)
            return
        await self._call.follow(self._take)
        response = Response(
            msgspec.json.encode(self._answer.body()),
            headers=self._extra,
            media_type="application/json",
        )
        self._begun = True
        await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body})

    # ------------------------------------------------------------------------------ parts

    async def _take(self, index: int, payload: Payload) -> None:
        self._answer.feed(index, payload)

    def _forward(self, send: Send) -> Callable[[int, Payload], Awaitable[None]]:
        async def forward(index: int, payload: Payload) -> None:
            frames = self._answer.feed(index, payload)
            if frames or not self._begun:
                await self._write(send, frames)

        return forward

    async def _write(self, send: Send, frames: bytes, *, more: bool = True) -> None:
        """Send frames, behind the head and the opening if they are the first."""
        async with self._lock:
            if not self._begun:
                self._begun = True
                headers = [*sse.HEADERS.items(), *self._extra.items()]
                raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
                await send({"type": "http.response.start", "status": 200, "headers": raw})
                frames = self._answer.opening() + frames
            self._last = time.monotonic()
            await send({"type": "http.response.body", "body": frames, "more_body": more})

    async def _fail(self, reason: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        if isinstance(reason, OSError | ClientDisconnect):
            return  # nobody listens any more
        if not isinstance(reason, EverlogError):
            log.error("a request to %s failed", scope.get("path"), exc_info=reason)
        error = errors.of(reason)
        if not self._begun and not self._call.queued_before:
            await error.response()(scope, receive, send)
        elif self._stream:
            await self._write(send, self._answer.broken(error), more=False)

"""The door: middleware before all HTTP routes that asks who comes; see `app.transport.auth`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.transport.auth import Auth, Denied, Principal, bearer
from app.transport.openai.errors import ApiError
from app.transport.origin import Gate
from app.transport.problem import problem

__all__ = ["Door"]

PUBLIC = frozenset(
    {"/", "/healthz", "/readyz", "/health", "/ping", "/version", "/favicon.ico", "/openapi.json"}
)
PAGES = ("/t/", "/static/")
"""What anybody may have: the page (it has no data), and whether the service is well."""

SCOPES: Mapping[str, tuple[str, ...]] = {
    "/api/keys": ("admin",),
    "/api": ("chat", "read"),
    "/metrics": ("read",),
}
"""Which scopes open what is under a path; the first that fits. All else is for ``api``."""

SAFE = frozenset({"GET", "HEAD"})
"""Methods that make the engine do nothing: they are not limited."""


ENDED = Denied(401, "invalid_api_key", "this API key is of no use any more")


class Door:
    """Lets requests through to ``app`` whose key allows it, and ends those whose key ends."""

    def __init__(self, app: ASGIApp, auth: Auth, gate: Gate) -> None:
        self._app = app
        self._auth = auth
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        path = scope.get("path", "")
        if scope["type"] != "http" or path in PUBLIC or path.startswith(PAGES):
            return await self._app(scope, receive, send)
        if scope["method"] == "OPTIONS":  # asks what might be done, and has no key yet
            return await self._app(scope, receive, send)
        with contextlib.ExitStack() as held:
            try:
                principal = self._ask(scope)
                if scope["method"] not in SAFE:
                    self._auth.spend(principal)
                    held.enter_context(self._auth.slot(principal))
            except Denied as denied:
                return await _refusal(path, denied)(scope, receive, send)
            scope["everlog.principal"] = principal
            if principal.key is None:
                return await self._app(scope, receive, send)
            visit = _Visit(receive, send)
            held.enter_context(self._auth.present(principal, visit.over.set))
            return await visit.run(self._app, scope)

    def _ask(self, scope: Scope) -> Principal:
        headers = Headers(scope=scope)
        principal = self._auth.identify(bearer(headers.get("authorization")))
        self._auth.check(principal, *wanted(scope["path"]))
        origin, host = headers.get("origin"), headers.get("host")
        if principal.key is None and not self._gate.script(origin, host):
            raise self._auth.foreign()
        return principal


def wanted(path: str) -> tuple[str, ...]:
    """Return the scopes of which one opens a path."""
    for prefix, scopes in SCOPES.items():
        if path == prefix or path.startswith(prefix + "/"):
            return scopes
    return ("api",)


class _Visit:
    """One request that ends as if its client had gone when its key is of no use any more."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.over = asyncio.Event()
        self._receive = receive
        self._send = send
        self._started = self._ended = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self.receive, self.send)
        except Exception:
            if not self.over.is_set():
                raise
        if self.over.is_set() and not self._ended:
            if self._started:
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await _refusal(scope["path"], ENDED)(scope, self._receive, self._send)

    async def receive(self) -> Message:
        coming = asyncio.ensure_future(self._receive())
        ending = asyncio.ensure_future(self.over.wait())
        try:
            await asyncio.wait((coming, ending), return_when=asyncio.FIRST_COMPLETED)
            return coming.result() if coming.done() else {"type": "http.disconnect"}
        finally:
            coming.cancel()
            ending.cancel()

    async def send(self, message: Message) -> None:
        if self.over.is_set() and self._started:
            raise OSError(ENDED.message)
        self._started = True
        self._ended = message["type"] == "http.response.body" and not message.get("more_body")
        await self._send(message)


def _refusal(path: str, denied: Denied) -> Response:
    if path.startswith(("/api/", "/metrics")):
        return problem(denied.status, denied.message, headers=denied.headers)
    error = ApiError(denied.status, denied.message, code=denied.code)
    return Response(
        msgspec.json.encode(error.body()),
        status_code=denied.status,
        headers=denied.headers,
        media_type="application/json",
    )

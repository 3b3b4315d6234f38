"""HTTP: the API for lists, history and state, the service's own checks, and the UI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import EverlogError
from app.events.envelope import thread_stream
from app.projections import state as projection
from app.projections.views import Views
from app.transport import keys_api, openapi
from app.transport.access import Owners
from app.transport.auth import Auth, authenticate
from app.transport.door import Door
from app.transport.items import ItemCache
from app.transport.metrics import MetricsPage
from app.transport.openai.api import Api
from app.transport.openai.api import Source as ApiSource
from app.transport.openai.routes import routes as openai_routes
from app.transport.origin import Gate
from app.transport.problem import HANDLERS, number, problem
from app.transport.static import StaticFiles

__all__ = ["Info", "Source", "application"]

REACH_SECONDS = 2.0
"""Longest wait for a projection to catch up before an older list is served."""

HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
        b"form-action 'self'; frame-ancestors 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """What this server is (``/api/info``)."""

    name: str
    version: str
    protocol: str
    incarnation: str
    database: str
    model: Mapping[str, Any] | None
    engine: str


class Source(ApiSource, Protocol):
    """What the routes show."""

    @property
    def api(self) -> Api:
        """What the endpoints under ``/v1`` share."""
        ...

    @property
    def views(self) -> Views:
        """The read models."""
        ...

    @property
    def owners(self) -> Owners:
        """Whose thread is whose."""
        ...

    @property
    def auth(self) -> Auth:
        """Who may come in."""
        ...

    @property
    def metrics(self) -> MetricsPage:
        """What Prometheus scrapes."""
        ...

    @property
    def cache(self) -> ItemCache:
        """Encoded items."""
        ...

    def info(self) -> Info:
        """What this server is."""
        ...

    async def checks(self) -> dict[str, str]:
        """Readiness by part: ``ok``, or what is wrong with it."""
        ...


def application(source: Source, gate: Gate, files: StaticFiles | None = None) -> ASGIApp:
    """Return the ASGI app of everything that is not a WebSocket."""
    api, ui = _Api(source), files or StaticFiles()
    routes: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [
        ("/", ui.page),
        ("/t/{thread}", ui.page),
        ("/static/{path:path}", ui.file),
        ("/healthz", _health),
        ("/readyz", api.ready),
        ("/health", api.ready),
        ("/ping", api.ready),
        ("/version", api.version),
        ("/metrics", source.metrics.page),
        ("/openapi.json", _openapi),
        ("/api/info", api.info),
        ("/api/threads", api.threads),
        ("/api/threads/{thread}", api.thread),
        ("/api/threads/{thread}/timeline", api.timeline),
        ("/api/threads/{thread}/events", api.events),
    ]
    pages = [Route(path, endpoint, methods=["GET"]) for path, endpoint in routes]
    app = Starlette(
        routes=[
            *pages,
            *keys_api.routes(source.auth, source.store),
            *openai_routes(source.api),
        ],
        exception_handlers=HANDLERS,
    )
    return _Guard(_cors(Door(app, source.auth, gate), gate.scripts), gate)


def _cors(app: ASGIApp, origins: list[str]) -> ASGIApp:
    """Let scripts of other sites read answers, if there are any that may."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "x-everlog-ignored", "retry-after", "retry-after-ms"],
    )


class _Guard:
    """Checks Host and adds the headers that harden a browser."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        if scope["type"] == "http" and not self._gate.host(Request(scope).headers.get("host")):
            refusal = problem(
                421, "this server does not go by that name; see the setting server.origins"
            )
            return await refusal(scope, receive, sending)
        return await self._app(scope, receive, sending)


def _json(value: object, *, tag: str | None = None, status: int = 200) -> Response:
    headers = {"Cache-Control": "no-cache"} | ({"ETag": tag} if tag else {})
    return Response(
        msgspec.json.encode(value),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


def _unchanged(request: Request, tag: str) -> Response | None:
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag, "Cache-Control": "no-cache"})
    return None


async def _health(request: Request) -> Response:
    """The event loop turns; nothing else is asked."""
    return _json({"status": "ok"})


async def _openapi(request: Request) -> Response:
    """The description of all routes."""
    return Response(openapi.document(), media_type="application/json")


class _Api:
    """The endpoints. All of them only read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._store = source.store

    async def ready(self, request: Request) -> Response:
        checks = await self._source.checks()
        # Without a worker messages are taken all the same, and wait.
        ready = all(state in ("ok", "no worker") for state in checks.values())
        body = {"status": "ready" if ready else "not ready", "checks": checks}
        return _json(body, status=200 if ready else 503)

    async def version(self, request: Request) -> Response:
        return _json({"version": self._source.info().version})

    async def info(self, request: Request) -> Response:
        return _json(self._source.info())

    async def threads(self, request: Request) -> Response:
        """The user's conversations, newest message first; up to date with the log's head."""
        limit = number(request, "limit", 50, least=1, most=200)
        before = number(request, "before", 0) or None
        search = request.query_params.get("search") or None
        user = (await authenticate(request)).user
        head = await self._store.head()
        tag = f'"{self._store.incarnation}-{head}-{user}"'
        unchanged = _unchanged(request, tag)
        if unchanged is not None:
            return unchanged
        current = await self._reached(head)
        rows = await self._source.views.threads(
            owner=user, limit=limit, before=before, search=search
        )
        more = rows[-1].seq if len(rows) == limit else None
        return _json({"items": rows, "next": more}, tag=tag if current else None)

    async def thread(self, request: Request) -> Response:
        """The state of a conversation, now or as of a position of the log."""
        thread = await self._authorize(request)
        at = number(request, "at", -1)
        version = await self._store.stream_version(thread_stream(thread))
        tag = f'"{self._store.incarnation}-{version}-{at}"'
        unchanged = _unchanged(request, tag)
        if unchanged is not None:
            return unchanged
        state = await projection.load(self._store, thread, at=at if at >= 0 else None)
        if state is None:
            raise HTTPException(404, f"conversation {thread} did not exist at seq {at}")
        return _json(state, tag=tag if state.version == version or at >= 0 else None)

    async def timeline(self, request: Request) -> Response:
        thread = await self._authorize(request)
        await self._reached(await self._store.head())
        return _json({"spans": await self._source.views.timeline(thread)})

    async def events(self, request: Request) -> Response:
        """Events of a conversation, as the items that ``events`` frames carry."""
        thread = await self._authorize(request)
        after = number(request, "after", 0)
        limit = number(request, "limit", 500, least=1, most=2000)
        events = await self._store.fetch(after=after, stream=thread_stream(thread), limit=limit)
        items = b",".join([self._source.cache.encode(event) for event in events])
        more = str(events[-1].version) if len(events) == limit else "null"
        body = b"".join((b'{"items":[', items, b'],"next":', more.encode(), b"}"))
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-cache"})

    async def _reached(self, seq: int) -> bool:
        """Wait for the read models; False if they are late or stand still, and rows are old."""
        try:
            with anyio.fail_after(REACH_SECONDS):
                await self._source.views.reached(seq)
        except (TimeoutError, EverlogError):
            return False
        return True

    async def _authorize(self, request: Request) -> str:
        """Return the thread a request is about, if it exists and is the user's."""
        thread: str = request.path_params["thread"]
        if not await self._store.stream_version(thread_stream(thread)):
            raise HTTPException(404, f"there is no conversation {thread}")
        if not await self._source.owners.allows(thread, (await authenticate(request)).user):
            raise HTTPException(403, "this conversation belongs to somebody else")
        return thread

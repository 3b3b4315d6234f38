"""``/api/keys``: list, make and revoke API keys over HTTP, for who has the scope ``admin``."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.errors import InputError
from app.events.store import EventStore
from app.transport import keys
from app.transport.auth import Auth, authenticate
from app.transport.keys import Key
from app.transport.problem import problem

__all__ = ["KeyRow", "NewKey", "routes", "row"]

MAX_BODY = 65_536


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /api/keys``; see `app.transport.keys.create`."""

    name: str
    scopes: tuple[str, ...] = ("chat", "api")
    rate: float | None = None
    concurrency: int | None = None
    expires: int | None = None
    user: str | None = None


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is shown; ``secret`` only once, where it was made. Times are ns."""

    id: str
    name: str
    state: str
    scopes: list[str]
    rate: float | None
    concurrency: int | None
    expires: int | None
    user: str
    created: int
    revoked: int | None
    secret: str | None = None


def row(key: Key, secret: str | None = None) -> KeyRow:
    """What people may see of a key."""
    return KeyRow(
        id=key.id,
        name=key.name,
        state=key.state(time.time_ns()),
        scopes=sorted(key.scopes),
        rate=key.rate,
        concurrency=key.concurrency,
        expires=key.expires,
        user=key.user,
        created=key.created,
        revoked=key.revoked,
        secret=secret,
    )


def routes(auth: Auth, store: EventStore) -> list[Route]:
    """Return the routes; the door in front of them asks for the scope."""

    async def listed(request: Request) -> Response:
        return _json({"items": [row(key) for key in auth.keys.all]})

    async def create(request: Request) -> Response:
        wanted = await _body(request)
        actor = (await authenticate(request)).actor
        made = await keys.create(store, **msgspec.structs.asdict(wanted), actor=actor)
        return _json(row(made.key, made.secret), 201)

    async def revoke(request: Request) -> Response:
        actor = (await authenticate(request)).actor
        given = request.path_params["key"]
        if auth.keys.named(given) is None and (await keys.load(store)).named(given) is None:
            return problem(404, f"there is no key {given!r} that is not revoked")
        return _json(row(await keys.revoke(store, given, actor=actor)))

    return [
        Route("/api/keys", listed, methods=["GET"]),
        Route("/api/keys", create, methods=["POST"]),
        Route("/api/keys/{key}", revoke, methods=["DELETE"]),
    ]


def _json(value: object, status: int = 200) -> Response:
    return Response(
        msgspec.json.encode(value),
        status_code=status,
        headers={"Cache-Control": "no-store"},
        media_type="application/json",
    )


async def _body(request: Request) -> NewKey:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise InputError("is too large", field="body")
    try:
        return msgspec.json.decode(body, type=NewKey)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(str(error), field="body") from None

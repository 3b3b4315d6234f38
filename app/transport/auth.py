"""Who may come in: API keys, what they may do, and how often.

`Auth` follows the keys in the log, so a key that is revoked anywhere is refused here at once, and
what it has open ends. `Door` is the middleware in front of all HTTP routes: what is not public
needs a key where keys are needed. Limits count in this process: with several behind a balancer each
allows as much.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request

from app.errors import EverlogError
from app.events.codec import PayloadError
from app.events.follow import following
from app.events.store import EventStore, StoreClosed
from app.transport import keys
from app.transport.access import LOCAL
from app.transport.keys import SCOPES, Key, Keys
from app.transport.origin import is_loopback

__all__ = ["Auth", "Denied", "Principal", "authenticate", "bearer", "needed"]

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
"""How often is looked for keys that have expired."""
EVERYTHING = frozenset(SCOPES)


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who makes a request.

    Attributes:
        name: Of the key; ``local`` without one.
        scopes: What it may do, see `app.transport.keys.SCOPES`.
        user: Whose conversations it sees.
        key: Id of the key; None without one.
        rate: Most requests a minute; None: any.
        concurrency: Most requests at once; None: any.

    """

    name: str
    scopes: frozenset[str] = EVERYTHING
    user: str = LOCAL
    key: str | None = None
    rate: float | None = None
    concurrency: int | None = None

    @property
    def actor(self) -> str:
        """The actor of events: ``key:<name>``, or ``user:local`` without a key."""
        return f"user:{self.user}" if self.key is None else f"key:{self.name}"

    def may(self, *scopes: str) -> bool:
        """Whether it has one of these scopes."""
        return "admin" in self.scopes or not self.scopes.isdisjoint(scopes)


class Denied(EverlogError):
    """A request that may not go on.

    ``status`` is 401 (no key, or a wrong one), 403 (it may not do that) or 429 (too much).
    ``retry`` is how many seconds later it may.
    """

    def __init__(self, status: int, code: str, message: str, retry: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry = status, code, retry

    @property
    def headers(self) -> dict[str, str]:
        """What HTTP says of it beside the body."""
        found = {}
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        if self.retry is not None:
            found["retry-after"] = str(max(1, math.ceil(self.retry)))
            found["retry-after-ms"] = str(math.ceil(self.retry * 1e3))
        return found


class Bucket:
    """A token bucket: holds a minute's worth, and fills up evenly. Time is in seconds."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.size = max(1.0, rate)
        self.level, self._at = self.size, now

    def take(self, now: float) -> float:
        """Take one; returns 0, or after how many seconds there will be one."""
        self.level = min(self.size, self.level + (now - self._at) * self.rate / 60)
        self._at = now
        if self.level < 1:
            return (1 - self.level) * 60 / self.rate
        self.level -= 1
        return 0.0


def needed(auth: Literal["auto", "required", "off"], host: str) -> bool:
    """Whether a server that listens on ``host`` needs keys, by the setting ``server.auth``."""
    return auth == "required" or (auth == "auto" and not is_loopback(host))


def bearer(header: str | None) -> str | None:
    """Return the token of an ``Authorization`` header; None if it has none."""
    scheme, _, token = (header or "").strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


class Auth:
    """Decides for one server.

    Args:
        store: The log that has the keys.
        required: Whether nobody comes in without a key.

    Attributes:
        control: A token that opens everything as long as this process lives; it is told to nobody
            but the commands of those who may read the database.
        refused: How many requests were denied, by code.

    """

    def __init__(self, store: EventStore, *, required: bool) -> None:
        self.required = required
        self.control = secrets.token_urlsafe(32)
        self.keys = Keys()
        self.refused: dict[str, int] = {}
        self._store = store
        self._buckets: dict[str, Bucket] = {}
        self._busy: dict[str, int] = {}
        self._guests: dict[object, tuple[str, Callable[[], None]]] = {}

    @property
    def locked_out(self) -> bool:
        """Whether nobody can come in, because a key is needed and there is none."""
        now = time.time_ns()
        return self.required and not any(key.valid(now) for key in self.keys.all)

    async def load(self) -> None:
        """Read the keys. Call before anybody is let in."""
        self.keys = await keys.load(self._store)

    async def run(self) -> None:
        """Keep up with the keys, and send away whose key is of no use any more; runs for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tick())
            with contextlib.suppress(StoreClosed):
                after = self.keys.version
                async for events in following(
                    self._store, after=after, stream=keys.STREAM, types=keys.TYPES
                ):
                    for event in events:
                        try:
                            self.keys.apply(event)
                        except PayloadError as error:
                            log.error("a key cannot be read: %s", error)
                    self._sweep()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._sweep()

    def _sweep(self) -> None:
        now = time.time_ns()
        for key, leave in list(self._guests.values()):
            found = self.keys.get(key)
            if found is None or not found.valid(now):
                leave()

    # ---------------------------------------------------------------------------- deciding

    def identify(self, token: str | None) -> Principal:
        """Return who has this token.

        Where no key is needed, a token that is not one of ours is nobody's business: many clients
        cannot be used without one.

        Raises:
            Denied: A key is needed, or this one is wrong, revoked or expired.

        """
        if token is not None and hmac.compare_digest(token.encode(), self.control.encode()):
            return Principal(name=LOCAL)
        if token is None or not (self.required or token.startswith(keys.MARK)):
            if self.required:
                raise self._deny(
                    401, "missing_api_key", "an API key is needed: everlog keys create"
                )
            return Principal(name=LOCAL)
        key = self.keys.find(token)
        state = key.state(time.time_ns()) if key is not None else "wrong"
        if key is None or state != "valid":
            what = (
                "is wrong" if key is None else f"was {state}" if state == "revoked" else "expired"
            )
            raise self._deny(401, "invalid_api_key", f"this API key {what}")
        return _principal(key)

    def check(self, principal: Principal, *scopes: str) -> None:
        """Go on if it has one of these scopes.

        Raises:
            Denied: It has none of them.

        """
        if not principal.may(*scopes):
            wanted = " or ".join(scopes)
            raise self._deny(403, "insufficient_scope", f"this API key lacks the scope {wanted}")

    def spend(self, principal: Principal) -> None:
        """Count a request against the key's rate.

        Raises:
            Denied: There were too many.

        """
        if principal.key is None or principal.rate is None:
            return
        now = time.monotonic()
        bucket = self._buckets.get(principal.key)
        if bucket is None:
            bucket = self._buckets[principal.key] = Bucket(principal.rate, now)
        wait = bucket.take(now)
        if wait > 0:
            message = f"this API key may make {principal.rate:g} requests a minute"
            raise self._deny(429, "rate_limit_exceeded", message, wait)

    @contextlib.contextmanager
    def slot(self, principal: Principal) -> Iterator[None]:
        """Be one of the requests that the key has under way, for the time of the block.

        Raises:
            Denied: There are as many as there may be.

        """
        key, most = principal.key, principal.concurrency
        if key is None or most is None:
            yield
            return
        if self._busy.get(key, 0) >= most:
            message = f"this API key may have {most} requests at once"
            raise self._deny(429, "concurrency_limit_exceeded", message, 1.0)
        self._busy[key] = self._busy.get(key, 0) + 1
        try:
            yield
        finally:
            self._busy[key] -= 1
            if not self._busy[key]:
                del self._busy[key]

    @contextlib.contextmanager
    def present(self, principal: Principal, leave: Callable[[], None]) -> Iterator[None]:
        """Be here for the time of the block; ``leave`` is called when the key is of no use."""
        if principal.key is None:
            yield
            return
        guest = object()
        self._guests[guest] = principal.key, leave
        try:
            yield
        finally:
            del self._guests[guest]

    def foreign(self) -> Denied:
        """What a page of another site gets that has no key."""
        message = "a page of another site needs an API key, or its origin in server.cors_origins"
        return self._deny(403, "foreign_origin", message)

    def _deny(self, status: int, code: str, message: str, retry: float | None = None) -> Denied:
        self.refused[code] = self.refused.get(code, 0) + 1
        return Denied(status, code, message, retry)


def _principal(key: Key) -> Principal:
    return Principal(
        name=key.name,
        scopes=key.scopes,
        user=key.user,
        key=key.id,
        rate=key.rate,
        concurrency=key.concurrency,
    )


async def authenticate(request: Request) -> Principal:
    """Return who makes an HTTP request.

    `app.transport.door.Door` has let it in: its key was looked at, its scope, rate and concurrency.
    """
    principal = request.scope.get("everlog.principal")
    if not isinstance(principal, Principal):
        raise HTTPException(401, "this route has no door")
    return principal

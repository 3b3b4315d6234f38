"""API keys: what they are, how they are made and revoked in the log, and the fold of them.

A key is ``evl_<id>_<secret>``. The id is public and finds the key; the secret is 256 random bits.
The log keeps the SHA-256 of the whole. A fast hash without salt would be wrong for passwords, which
can be guessed; among 2^256 secrets there is nothing to guess, and no two are the same.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable

import msgspec

from app.errors import EverlogError, InputError
from app.events.catalogue import KeyCreated, KeyRevoked, Payload
from app.events.codec import decode, new
from app.events.envelope import Event
from app.events.store import Append, Appended, Conflict, EventStore

__all__ = ["OWN", "SCOPES", "STREAM", "Key", "Keys", "Made", "check", "create", "load", "revoke"]

STREAM = "keys"
"""The stream of all keys: few events, and one order for all that happens to them."""

TYPES = ("key.created", "key.revoked")
MARK = "evl_"
SCOPES = {
    "chat": "the chat: the browser, `everlog ask`, and its conversations",
    "api": "the HTTP API under /v1, and its conversations",
    "read": "metrics, and reading conversations",
    "admin": "everything, keys included",
}
"""What a key may be used for."""

OWN = "key:"
"""Beginning of the user id of a key that acts for itself."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_USER = re.compile(r"[!#-.0-~]{1,128}")


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the log has it. Times are ns since the epoch; ``rate`` is requests a minute."""

    id: str
    name: str
    hash: str
    scopes: frozenset[str]
    rate: float | None
    concurrency: int | None
    expires: int | None
    user: str
    created: int
    revoked: int | None = None

    def valid(self, now: int) -> bool:
        """Whether it opens anything."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    def state(self, now: int) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "valid" if self.valid(now) else "expired"


class Made(msgspec.Struct, frozen=True):
    """A new key, and its text, which nothing shows again."""

    key: Key
    secret: str


class Keys:
    """All keys: the fold of their stream. ``version`` is how far."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.version = 0
        self._keys: dict[str, Key] = {}
        for event in events:
            self.apply(event)

    @property
    def all(self) -> list[Key]:
        """Every key there ever was, oldest first."""
        return list(self._keys.values())

    def get(self, id: str) -> Key | None:
        """Return a key by its id."""
        return self._keys.get(id)

    def named(self, given: str) -> Key | None:
        """Return the key that is not revoked and has this name, or this id."""
        found = self._keys.get(given)
        if found is not None and found.revoked is None:
            return found
        return next((k for k in self.all if k.name == given and k.revoked is None), None)

    def acting(self, actor: str, at: int) -> Key | None:
        """Return the key that wrote as an actor at a time (ns since the epoch); None: none did."""
        made = (k for k in self.all if f"key:{k.name}" == actor and k.created <= at)
        return max(made, key=lambda k: k.created, default=None)

    def find(self, secret: str) -> Key | None:
        """Return the key that this is the text of, valid or not. Takes as long for wrong ones."""
        _, _, rest = secret.partition("_")
        key = self._keys.get(rest.partition("_")[0])
        expected = key.hash if key is not None else "0" * 64
        return key if hmac.compare_digest(_digest(secret), expected) else None

    def apply(self, event: Event) -> None:
        """Fold one event of the stream."""
        self.version = event.version
        payload = decode(event)
        if isinstance(payload, KeyCreated):
            self._keys[payload.key] = _key(payload, event.time)
        elif isinstance(payload, KeyRevoked) and payload.key in self._keys:
            key = self._keys[payload.key]
            self._keys[key.id] = msgspec.structs.replace(key, revoked=key.revoked or event.time)


def _key(payload: KeyCreated, created: int) -> Key:
    return Key(
        id=payload.key,
        name=payload.name,
        hash=payload.hash,
        scopes=frozenset(payload.scopes),
        rate=payload.rate,
        concurrency=payload.concurrency,
        expires=payload.expires,
        user=payload.user or OWN + payload.name,
        created=created,
    )


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


async def load(store: EventStore) -> Keys:
    """Read all keys of a log."""
    return Keys([event async for event in store.read(stream=STREAM)])


async def create(
    store: EventStore,
    name: str,
    *,
    scopes: Iterable[str] = ("chat", "api"),
    rate: float | None = None,
    concurrency: int | None = None,
    expires: int | None = None,
    user: str | None = None,
    actor: str = "system",
) -> Made:
    """Make a key and write it down.

    Args:
        store: The log.
        name: 1 to 64 of ``A-Z a-z 0-9 . _ -``, unique among the keys that are not revoked, and
            never that of another user's. It goes into the log as the actor of what is done with
            the key, and opens what that actor asked and stored.
        scopes: Some of `SCOPES`.
        rate: Most requests a minute; None: any.
        concurrency: Most requests at once; None: any.
        expires: When it ends, ns since the epoch; None: never.
        user: Whose conversations it opens; None: its own.
        actor: Who makes it.

    Raises:
        InputError: A field is wrong, or the name is taken.

    """
    wanted = sorted(set(scopes))
    check(name, wanted, rate, concurrency, expires, user)
    id = secrets.token_hex(6)
    secret = f"{MARK}{id}_{secrets.token_urlsafe(32)}"
    payload = KeyCreated(
        key=id,
        name=name,
        hash=_digest(secret),
        scopes=wanted,
        rate=rate,
        concurrency=concurrency,
        expires=expires,
        user=user,
    )
    owner = user or OWN + name
    while True:
        keys = await load(store)
        _free(keys, name, owner)
        if await _append(store, payload, keys.version, actor):
            return Made(_key(payload, time.time_ns()), secret)


def _free(keys: Keys, name: str, owner: str) -> None:
    """Go on if a key of this user may have this name.

    Raises:
        InputError: It may not.

    """
    if keys.named(name) is not None:
        raise InputError(
            f"there is a key {name!r} already",
            field="name",
            hint=f"Choose another, or revoke it first: everlog keys revoke {name}",
        )
    before = next((k.user for k in keys.all if k.name == name), owner)
    if before != owner:  # it would open what that user asked, and stored
        raise InputError(
            f"{name!r} was the name of a key of the user {before!r}",
            field="name",
            hint="Choose another.",
        )


async def revoke(store: EventStore, given: str, *, actor: str = "system") -> Key:
    """Make a key useless, by its name or id.

    Raises:
        EverlogError: There is no such key, or it was revoked before.

    """
    while True:
        keys = await load(store)
        key = keys.named(given)
        if key is None:
            raise EverlogError(
                f"There is no key {given!r} that is not revoked",
                hint="List them with: everlog keys list",
            )
        if await _append(store, KeyRevoked(key=key.id), keys.version, actor):
            return msgspec.structs.replace(key, revoked=time.time_ns())


async def _append(store: EventStore, payload: Payload, version: int, actor: str) -> bool:
    """Append to the stream of keys; False if somebody else just did."""
    outcome = await store.append(
        Append(stream=STREAM, events=[new(payload, actor=actor)], expected=version)
    )
    if isinstance(outcome, Appended):
        return True
    if isinstance(outcome, Conflict):
        return False
    raise EverlogError(f"the log did not take it: {outcome!r}")


def check(
    name: str,
    scopes: list[str],
    rate: float | None,
    concurrency: int | None,
    expires: int | None,
    user: str | None,
) -> None:
    """Check the fields of a key to be made; see `create`.

    Raises:
        InputError: One is wrong.

    """
    if not _NAME.fullmatch(name):
        raise InputError("must be 1 to 64 of A-Z a-z 0-9 . _ -", field="name")
    for scope in scopes:
        if scope not in SCOPES:
            raise InputError(f"there is no {scope!r}; there are {', '.join(SCOPES)}", field="scope")
    if not scopes:
        raise InputError("name at least one", field="scope")
    if rate is not None and not 0 < rate <= 1e9:
        raise InputError("must be above 0", field="rate")
    if concurrency is not None and not 0 < concurrency <= 1_000_000:
        raise InputError("must be at least 1", field="concurrency")
    if expires is not None and expires <= time.time_ns():
        raise InputError("must be in the future", field="expires")
    if user is not None and not _USER.fullmatch(user):
        raise InputError(
            "must be 1 to 128 ASCII characters without blanks, / and quotes", field="user"
        )

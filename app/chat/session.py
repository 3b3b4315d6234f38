"""``user_session``: a thread's own values, rebuilt from the log.

Every ``set`` becomes a ``session.changed`` event in the same append as the next thing the run
emits, before it. Values changed in place (``user_session.get("history").append(...)``) are found
by comparing their JSON before the run emits and when it ends.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from app.chat.context import current
from app.errors import InputError
from app.events.catalogue import SessionChanged

__all__ = ["RESERVED", "Session", "UserSession", "user_session"]

#: Keys with a meaning of their own; read-only.
RESERVED = frozenset({"id", "user", "env", "chat_settings", "chat_profile", "client_type"})

_MUTABLE = (dict, list)
_encode = msgspec.json.encode


class Session:
    """The values of one thread, as this process knows them."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = dict(values)
        self._lent: dict[str, bytes] = {}  # key -> JSON when last written, of values handed out

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value; what is changed inside of it is kept."""
        if key not in self._values:
            return default
        value = self._values[key]
        if isinstance(value, _MUTABLE) and key not in self._lent:
            self._lent[key] = _encode(value)
            # A copy, so that what the author does to it reaches the state only through the log.
            value = self._values[key] = msgspec.json.decode(self._lent[key])
        return value

    def set(self, key: str, value: Any) -> SessionChanged:
        """Set a value; returns the event.

        Raises:
            InputError: The value is not JSON, or the key is reserved.

        """
        _check_key(key)
        _check_json(value, f"user_session[{key!r}]")
        self._values[key] = value
        if isinstance(value, _MUTABLE):
            self._lent[key] = _encode(value)
        else:
            self._lent.pop(key, None)
        return SessionChanged(values={key: _snapshot(value)})

    def remove(self, key: str) -> SessionChanged | None:
        """Drop a value; returns the event, None if there was none."""
        _check_key(key)
        self._lent.pop(key, None)
        return SessionChanged(removed=[key]) if self._values.pop(key, self) is not self else None

    def keys(self) -> list[str]:
        """The keys that are set."""
        return list(self._values)

    def mutated(self) -> SessionChanged | None:
        """Return what was changed in place since it was last written, None if nothing was.

        Raises:
            InputError: A value is no longer JSON.

        """
        changed: dict[str, Any] = {}
        for key, before in self._lent.items():
            value = self._values[key]
            _check_json(value, f"user_session[{key!r}]")
            now = _encode(value)
            if now != before:
                self._lent[key] = now
                changed[key] = msgspec.Raw(now)
        return SessionChanged(values=changed) if changed else None


class UserSession:
    """The session of the thread the calling code runs for. JSON values only."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of ``key``; ``id`` is the thread's id, ``user`` the user's."""
        ctx = current()
        if key in RESERVED:
            return {"id": ctx.thread, "user": ctx.user, "env": {}}.get(key, default)
        return ctx.session.get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Keep ``value`` with the thread: it is there in later runs and after a restart.

        Raises:
            InputError: The value is not JSON (None, bool, int, float, str, list, dict with str
                keys), or the key is reserved.

        """
        ctx = current()
        ctx.emitter.session(ctx.session.set(key, value))

    def remove(self, key: str) -> None:
        """Forget ``key``; nothing happens if it is not set."""
        ctx = current()
        change = ctx.session.remove(key)
        if change is not None:
            ctx.emitter.session(change)

    def keys(self) -> list[str]:
        """Return the keys that are set."""
        return current().session.keys()

    def __contains__(self, key: str) -> bool:
        return key in self.keys()


user_session = UserSession()


def _snapshot(value: Any) -> Any:
    """The value as it is now: later changes must not reach an event that is not written yet."""
    return msgspec.Raw(_encode(value)) if isinstance(value, _MUTABLE) else value


def _check_key(key: str) -> None:
    if key in RESERVED:
        raise InputError("is reserved and cannot be set", field=f"user_session[{key!r}]")


def _check_json(value: Any, field: str) -> None:
    if value is None or isinstance(value, bool | int | str):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{value} has no JSON form", field=field)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_json(item, f"{field}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"keys are strings, not {type(key).__name__}", field=field)
            _check_json(item, f"{field}[{key!r}]")
    else:
        raise InputError(
            f"{type(value).__name__} is not a JSON value",
            field=field,
            hint="The session is rebuilt from the log, so it holds JSON values only. Keep clients, "
            "models and other objects in variables of your module, or make them anew in "
            "on_chat_start and on_chat_resume.",
        )

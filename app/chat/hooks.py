"""Hooks: the decorators of a chat author, and the app they collect into.

There is no global registry. ``load`` makes a `ChatApp`, sets it as the one being loaded in a
ContextVar, and runs the author's file: its decorators find that app and no other. Outside of a
load (``python chat.py``, a test importing the file) they leave the function as it is.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, overload

from app.chat.errors import LoadError

__all__ = [
    "HOOKS",
    "ChatApp",
    "Hook",
    "arguments",
    "collecting",
    "location",
    "on_chat_end",
    "on_chat_resume",
    "on_chat_start",
    "on_message",
    "on_stop",
]

Hook = Callable[..., Any]
HOOKS = ("on_chat_start", "on_message", "on_stop", "on_chat_end", "on_chat_resume")

F = TypeVar("F", bound=Callable[..., Any])

_loading: ContextVar[ChatApp | None] = ContextVar("everlog_loading", default=None)


class ChatApp:
    """The hooks of one chat author's file.

    Args:
        name: Shown to the user.
        path: File it came from, None for the built-in app.
        resumable: Whether another process takes over a run of ``on_message`` that its own left
            behind, and calls the function again.
        waits: Whether such a run only waits for its requests, so that there is nothing to call
            again once they are queued. Implies ``resumable``.

    """

    def __init__(
        self,
        name: str,
        *,
        path: Path | None = None,
        resumable: bool = False,
        waits: bool = False,
    ) -> None:
        self.name = name
        self.path = path
        self.resumable = resumable or waits
        self.waits = waits
        self.hooks: dict[str, Hook] = {}

    def register(self, hook: str, function: Hook, *, resumable: bool = False) -> None:
        """Take a function for a hook; ``resumable``: see the class.

        Raises:
            LoadError: The hook has one already, or the function wants too many arguments.

        """
        if hook in self.hooks:
            raise LoadError(
                f"{location(function)}: a second @{hook}; the first is at "
                f"{location(self.hooks[hook])}",
                hint="Keep one function for each hook.",
            )
        if _required(function) > 1:
            raise LoadError(f"{location(function)}: @{hook} gets at most one argument")
        self.hooks[hook] = function
        self.resumable = self.resumable or resumable

    def has(self, hook: str) -> bool:
        """Whether the author wrote this hook."""
        return hook in self.hooks


@contextmanager
def collecting(app: ChatApp) -> Iterator[None]:
    """Make ``app`` the one that decorators register with."""
    token = _loading.set(app)
    try:
        yield
    finally:
        _loading.reset(token)


def location(function: Hook) -> str:
    """Return ``file:line`` of a function."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def arguments(function: Hook, offered: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return as many of the offered arguments as the function declares."""
    most = _most(function)
    return offered if most is None else offered[:most]


@functools.lru_cache(maxsize=256)
def _most(function: Hook) -> int | None:
    """How many positional arguments a function takes; None for any number."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in kinds for p in parameters)


def _required(function: Hook) -> int:
    return sum(
        p.default is inspect.Parameter.empty
        and p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for p in inspect.signature(function).parameters.values()
    )


def _register(hook: str, function: F, *, resumable: bool = False) -> F:
    app = _loading.get()
    if app is not None:
        app.register(hook, function, resumable=resumable)
    return function


def on_chat_start(function: F) -> F:
    """Call the function once when a new, empty thread is opened. No arguments."""
    return _register("on_chat_start", function)


@overload
def on_message(function: F, /) -> F: ...


@overload
def on_message(*, resumable: bool = False) -> Callable[[F], F]: ...


def on_message(function: Callable[..., Any] | None = None, /, *, resumable: bool = False) -> Any:
    """Call the function for every message of the user, with the `Message` (or nothing).

    Args:
        function: The function; ``@on_message`` alone works too.
        resumable: When the process ends in the middle of a run, the next one, or another node,
            calls the function again with the same message. Then ``context.resumed`` is true, and
            ``user_session`` is as the run left it.

    """

    def decorate(function: F) -> F:
        return _register("on_message", function, resumable=resumable)

    return decorate(function) if function is not None else decorate


def on_stop(function: F) -> F:
    """Call the function after the user stopped a run. No arguments."""
    return _register("on_stop", function)


def on_chat_end(function: F) -> F:
    """Call the function when the thread is deleted, or nobody has looked at it for a while."""
    return _register("on_chat_end", function)


def on_chat_resume(function: F) -> F:
    """Call the function when a thread with a past is opened again, with a `ThreadDict`."""
    return _register("on_chat_resume", function)

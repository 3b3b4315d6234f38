"""Steps: what a handler does on the way to its answer, as a tree."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from contextvars import Token
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast, overload

import msgspec

from app.chat.context import Context, current, current_step
from app.chat.errors import no_text, trace
from app.events.catalogue import ErrorInfo, StepCompleted, StepDelta, StepFailed, StepStarted
from app.events.ids import uuid7

__all__ = ["Step", "describe", "step"]

P = ParamSpec("P")
T = TypeVar("T")

MAX_TRACEBACK = 20_000


class Step:
    """A step of a run: ``async with Step(name="search", type="tool") as s``.

    Steps made inside of it, also in functions it calls and tasks it starts, are its children. An
    exception ends it as failed and goes on. ``with`` works as well, in sync handlers and steps.

    Args:
        name: Shown to the user.
        type: ``tool``, ``llm``, ``retrieval``, ``embedding``, ``rerank``, ``run`` ...
        parent_id: Another step; None takes the innermost open one.

    Attributes:
        input, output: Any value; what is not JSON is stored as its ``repr``. The input is stored
            as it stands when the handler first waits for something.

    """

    def __init__(
        self,
        name: str = "step",
        type: str = "undefined",
        parent_id: str | None = None,
        id: str | None = None,
        input: Any = None,
    ) -> None:
        self.id = id or uuid7()
        self.name = name
        self.type = type
        self.parent_id = parent_id
        self.input: Any = input
        self.output: Any = None
        self.request: str | None = None
        self._written = False
        self._streamed: list[str] = []
        self._ctx: Context | None = None
        self._token: Token[Step | None] | None = None

    def offer(self, request: str) -> None:
        """Name an engine request made inside; taken while the step's beginning is not written."""
        if not self._written and self.request is None:
            self.request = request

    async def stream_token(self, token: str, is_input: bool = False) -> None:
        """Add text to the output (or to the input) while the step runs.

        Raises:
            InputError: It is no text.

        """
        if not isinstance(token, str):
            raise no_text(token)
        if is_input:
            self.input = (self.input or "") + token
            return
        self._streamed.append(token)
        await self._context().emitter.piece(StepDelta, self.id, token)

    async def __aenter__(self) -> Step:
        self._enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit(error)

    def __enter__(self) -> Step:
        self._enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit(error)

    # ------------------------------------------------------------------------- internal

    def _context(self) -> Context:
        return self._ctx or current()

    def _enter(self) -> None:
        self._ctx = current()
        outer = current_step.get()
        if self.parent_id is None and outer is not None:
            self.parent_id = outer.id
        self._token = current_step.set(self)
        self._ctx.emit(self._begun)

    def _begun(self) -> StepStarted:
        self._written = True
        return StepStarted(
            step=self.id,
            name=self.name,
            kind=self.type,
            parent=self.parent_id,
            input=json_or_repr(self.input),
            request=self.request,
        )

    def _exit(self, error: BaseException | None) -> None:
        assert self._token is not None
        current_step.reset(self._token)
        ctx = self._context()
        if ctx.emitter.error is not None:
            return  # the run was stopped or its pipe broke: the run's end ends its steps
        output = json_or_repr(self.output)
        if output is None and self._streamed:
            output = "".join(self._streamed)
        if error is None:
            ctx.emit(StepCompleted(step=self.id, output=output))
        else:
            cut = isinstance(error, asyncio.CancelledError)
            info = ErrorInfo(kind="cancelled", message="cancelled") if cut else describe(error)
            ctx.emit(StepFailed(step=self.id, error=info, output=output))


@overload
def step(original: Callable[P, T], /) -> Callable[P, T]: ...


@overload
def step(
    *, name: str | None = None, type: str = "undefined"
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...


def step(
    original: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    type: str = "undefined",
) -> Any:
    """Make every call of a function a step: ``@step`` or ``@step(type="tool", name="search")``.

    Arguments become the input, the result the output. A sync function stays sync and runs where
    it is called; ``await make_async(function)(...)`` runs it in a thread.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        title = name or function.__name__

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call(*args: Any, **kwargs: Any) -> Any:
                async with Step(title, type, input=_input(function, args, kwargs)) as s:
                    result = await function(*args, **kwargs)
                    s.output = result if s.output is None else s.output
                    return result
        else:

            @functools.wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                with Step(title, type, input=_input(function, args, kwargs)) as s:
                    result = function(*args, **kwargs)
                    s.output = result if s.output is None else s.output
                    return result

        return call

    return decorate(original) if original is not None else decorate


def describe(error: BaseException) -> ErrorInfo:
    """An exception, as the log keeps it."""
    return ErrorInfo(
        kind=type(error).__name__, message=str(error), traceback=trace(error)[-MAX_TRACEBACK:]
    )


def json_or_repr(value: Any) -> Any:
    """The value if it is JSON as it stands, else what msgspec makes of it, else its ``repr``."""
    if value is None or isinstance(value, str | bool | int | float):
        return value if not isinstance(value, int) or abs(value) < 2**63 else str(value)
    try:
        return msgspec.Raw(msgspec.json.encode(value, enc_hook=repr))
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def _input(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Arguments by name, as they are when the call begins."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:
        bound = {"args": list(args), **kwargs}
    own = {key: value for key, value in bound.items() if key != "self"}
    return cast(Any, json_or_repr(own))

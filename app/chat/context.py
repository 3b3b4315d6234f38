"""Where a chat author's call stands: which thread, run and step, and where its events go."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from app.chat.hooks import Hook, arguments
from app.config import ChatConfig
from app.errors import EverlogError
from app.events.catalogue import Payload
from app.events.store import EventStore
from app.projections.state import MessageState

if TYPE_CHECKING:
    from app.chat.emitter import Build, Emitter
    from app.chat.llm import Generation
    from app.chat.message import Message
    from app.chat.session import Session
    from app.chat.step import Step

__all__ = ["Context", "context", "current", "invoke", "make_async", "run_sync", "sleep"]

P = ParamSpec("P")
T = TypeVar("T")

_current: ContextVar[Context] = ContextVar("everlog_context")
current_step: ContextVar[Step | None] = ContextVar("everlog_step", default=None)

sleep = asyncio.sleep


class Context:
    """One run of a handler, as its code sees it.

    Attributes:
        store: The log.
        thread, run, user: Ids.
        emitter: The run's pipe to the log.
        session: The thread's ``user_session``.
        chat: Defaults of ``llm``.
        past: The thread's messages when the run began.
        said: Messages this run began, in order.
        generations: Calls of the engine this run made, in order.
        threads: Limits the worker threads of sync handlers.
        resumed: Whether the run was begun by a process that is gone.

    """

    def __init__(
        self,
        *,
        store: EventStore,
        thread: str,
        run: str,
        user: str,
        emitter: Emitter,
        session: Session,
        chat: ChatConfig,
        past: Sequence[MessageState],
        threads: asyncio.Semaphore,
        resumed: bool = False,
    ) -> None:
        self.store = store
        self.thread = thread
        self.run = run
        self.user = user
        self.emitter = emitter
        self.session = session
        self.chat = chat
        self.past = past
        self.threads = threads
        self.resumed = resumed
        self.said: list[Message] = []
        self.generations: list[Generation] = []
        self.loop = asyncio.get_running_loop()

    @property
    def step(self) -> Step | None:
        """The innermost open step of the calling code."""
        return current_step.get()

    def emit(self, *payloads: Payload | Build) -> None:
        """Write in order, soon, behind what the author changed in the session."""
        self.put_session()
        for payload in payloads:
            self.emitter.put(payload)

    async def commit(self, *payloads: Payload | Build) -> int:
        """Write in order and wait until durable; returns the thread's version then."""
        self.put_session()
        return await self.emitter.commit(*payloads)

    def put_session(self) -> None:
        """Emit what the author changed inside of session values, without setting them."""
        change = self.session.mutated()
        if change is not None:
            self.emitter.session(change)


def current() -> Context:
    """Return the calling code's context.

    Raises:
        EverlogError: The caller is not inside a handler.

    """
    try:
        return _current.get()
    except LookupError:
        raise EverlogError(
            "this works only inside a handler",
            hint="Call it from a function with @on_message or another hook, "
            "or from a task that such a function started.",
        ) from None


class _Proxy:
    """The current `Context`, as attributes: ``context.thread``, ``context.run`` ..."""

    @property
    def thread(self) -> str:
        """Id of the thread."""
        return current().thread

    @property
    def run(self) -> str:
        """Id of the run."""
        return current().run

    @property
    def user(self) -> str:
        """Id of the user."""
        return current().user

    @property
    def resumed(self) -> bool:
        """Whether a process that is gone began this run, so that it is called again."""
        return current().resumed

    @property
    def current_step(self) -> Step | None:
        """The innermost open step."""
        return current().step


context = _Proxy()


def enter(ctx: Context) -> None:
    """Make ``ctx`` the current context of the calling task."""
    _current.set(ctx)


async def invoke(function: Hook, *offered: Any) -> Any:
    """Call a hook with as many arguments as it takes; a sync one in a thread, context and all."""
    given = arguments(function, offered)
    if asyncio.iscoroutinefunction(function):
        return await function(*given)
    result = await _in_thread(current(), functools.partial(function, *given))
    return await result if isinstance(result, Awaitable) else result


async def _in_thread(ctx: Context, call: Callable[[], T]) -> T:
    """Run a blocking call in a thread of its own; cancelling leaves the thread to itself.

    A daemon thread, unlike those of a pool: one that never ends must not keep the process alive.
    """
    async with ctx.threads:
        loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)

        def work() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = call()
            except StopIteration as stop:  # a future cannot hold it
                error = RuntimeError(f"the function raised {stop!r}")
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(settle, result, error)

        target = functools.partial(copy_context().run, work)
        threading.Thread(target=target, name="everlog-sync", daemon=True).start()
        return cast(T, await done)


def make_async(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a blocking function awaitable: it runs in a thread and keeps its place in the chat."""

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await _in_thread(current(), functools.partial(function, *args, **kwargs))

    return call


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine from a sync handler or step, and wait for its result.

    Raises:
        EverlogError: Called on the event loop itself, which it would block for ever.

    """
    loop = current().loop
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is loop:
        coroutine.close()
        raise EverlogError("run_sync blocks the event loop", hint="Write: await ... instead.")
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

"""One run: a handler called, watched, and ended in the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Literal

from app.chat.admission import Admission
from app.chat.context import Context, enter
from app.chat.emitter import Emitter
from app.chat.errors import LLMError, author_frames
from app.chat.hooks import ChatApp
from app.chat.session import Session
from app.chat.step import describe
from app.config import ChatConfig, StreamConfig
from app.errors import EverlogError
from app.events.catalogue import (
    MessagePosted,
    Payload,
    RunCompleted,
    RunFailed,
    RunInterrupted,
    RunStarted,
)
from app.events.codec import new
from app.events.envelope import NewEvent, thread_stream
from app.events.ids import uuid7
from app.events.presence import Presence
from app.events.store import ANY, EventStore, StoreError
from app.projections.state import MessageState, ThreadState

__all__ = ["Job", "Run", "Shared", "card"]

log = logging.getLogger("everlog.chat")

#: Seconds a cancelled handler has to come to its end before the thread goes on without it.
GRACE = 5.0

#: Sync handlers and steps that run at the same time.
MAX_THREADS = 256

Ending = Literal["stopped", "interrupted", "lost"]
"""``lost``: another process has taken the run over, or ended it."""


class Shared:
    """What all runs of a runtime share."""

    def __init__(
        self,
        store: EventStore,
        app: ChatApp,
        presence: Presence,
        stream: StreamConfig,
        chat: ChatConfig,
        admission: Admission,
    ) -> None:
        self.store = store
        self.admission = admission
        self.app = app
        self.node = presence.name
        self.presence = presence
        self.stream = stream
        self.chat = chat
        self.active: dict[str, Run] = {}
        self.ours: set[str] = set()  # runs begun here, or about to be
        self.drained = asyncio.Event()
        self.threads = asyncio.Semaphore(MAX_THREADS)
        self.tasks: asyncio.TaskGroup | None = None

    @property
    def draining(self) -> bool:
        """Whether no more runs are begun."""
        return self.drained.is_set()

    def left_behind(self, run: str, node: str) -> bool:
        """Whether an unfinished run of ``node`` has nobody who makes it."""
        if node == self.node:
            return run not in self.ours
        return self.presence.gone(node)

    def spawn(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Start a task that lives no longer than the runtime."""
        if self.tasks is None:
            raise EverlogError("the runtime is not running")

        async def call() -> None:
            await work()

        return self.tasks.create_task(call())


class Job:
    """A call of a hook that is to be made.

    Attributes:
        run: Id its run has or will have.
        message: The message ``on_message`` is called for.
        begun: Whether ``run.started`` is in the log.
        resume: The run was begun by a process that is gone.

    """

    def __init__(
        self,
        hook: str,
        message: MessageState | None = None,
        *,
        run: str | None = None,
        begun: bool = False,
        resume: bool = False,
    ) -> None:
        self.hook = hook
        self.message = message
        self.run = run or uuid7()
        self.begun = begun
        self.resume = resume

    def started(self, shared: Shared) -> NewEvent:
        """The event that begins its run."""
        payload = RunStarted(
            run=self.run,
            hook=self.hook,
            node=shared.node,
            message=self.message.id if self.message else None,
            resumable=shared.app.resumable and self.hook == "on_message",
        )
        return new(payload, run=self.run)


class Run:
    """A run under way in this process."""

    def __init__(self, shared: Shared, thread: str, job: Job) -> None:
        self.id = job.run
        self.hook = job.hook
        self.resumable = job.resume or (shared.app.resumable and job.hook == "on_message")
        self.waits = self.resumable and shared.app.waits
        self.ending: Ending | None = None
        self.emitter = Emitter(
            shared.store,
            thread_stream(thread),
            actor=f"handler:{job.hook}",
            run=job.run,
            config=shared.stream,
            presence=shared.presence,
        )
        self._shared = shared
        self._thread = thread
        self._resumed = job.resume
        self._context: Context | None = None
        self._task: asyncio.Task[None] | None = None
        self._cut = asyncio.Event()
        self._error: BaseException | None = None
        self._last: list[NewEvent] | None = None

    def cut(self, ending: Ending) -> None:
        """Cancel the handler; from now on it can write nothing."""
        if self.ending is None:
            self.ending = ending
            self.emitter.stop()
            if ending == "lost":
                self.emitter.forget()
            self._cut.set()
            if self._task is not None:
                self._task.cancel()

    async def interrupt(self) -> None:
        """Write what the handler has said so far, then cancel it: this process goes away."""
        try:
            await self.emitter.flush()
        except EverlogError:
            log.debug("nothing more to write for run %s", self.id)
        self.cut("interrupted")

    async def perform(self, state: ThreadState, body: Callable[[], Awaitable[None]]) -> None:
        """Call the handler and wait for its end, whatever it is.

        ``state`` is that of the thread at a version where the run was this process's.
        """
        self.emitter.version = state.version
        self._context = Context(
            store=self._shared.store,
            thread=self._thread,
            run=self.id,
            user=state.owner or "",
            emitter=self.emitter,
            session=Session(state.session),
            chat=self._shared.chat,
            past=[m for m in state.messages if self._resumed or m.run != self.id],
            threads=self._shared.threads,
            resumed=self._resumed,
        )
        self._shared.spawn(self.emitter.pump)
        if self.ending is not None:
            return
        self._task = self._shared.spawn(lambda: self._guard(body))
        cut = self._shared.spawn(self._cut_wait)
        await asyncio.wait([self._task, cut], return_when=asyncio.FIRST_COMPLETED)
        cut.cancel()
        if not self._task.done():
            _, late = await asyncio.wait([self._task], timeout=GRACE)
            if late:
                log.warning("run %s does not end after it was cancelled; left alone", self.id)

    async def end(self, *following: NewEvent, expected: int = ANY) -> bool:
        """Write how it ended, in one append with what follows it in the thread.

        Returns False if the thread is not at version ``expected``: nothing was written.

        Raises:
            StoreError: The log does not take it; call it again later.

        """
        if self._last is None:
            self._last = self._last_events()
        last = self._last if self.ending in (None, "interrupted") else []
        try:
            done = await self.emitter.finish(*last, *following, expected=expected)
        except StoreError:
            raise
        except Exception as error:
            log.exception("the end of run %s could not be written", self.id)
            self.emitter.forget()
            self._last = [self._event(RunFailed(run=self.id, error=describe(error)))]
            last = self._last if self.ending is None else []
            done = await self.emitter.finish(*last, *following, expected=expected)
        if not done:
            return False
        self.emitter.close()
        if self.ending is None and self._context is not None:
            for generation in self._context.generations:
                await generation.cancel()
        return True

    # ------------------------------------------------------------------------- internal

    async def _cut_wait(self) -> None:
        await self._cut.wait()

    async def _guard(self, body: Callable[[], Awaitable[None]]) -> None:
        assert self._context is not None
        enter(self._context)
        try:
            await body()
        except asyncio.CancelledError as error:
            self._error = error
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._error = error

    def _last_events(self) -> list[NewEvent]:
        if self.ending in ("stopped", "lost"):
            return []  # its end is in the log already, or another's to write
        if self.ending == "interrupted":
            if self.resumable:
                return []  # left open: the next process takes it over
            reason = "the server was shut down"
            return [self._event(RunInterrupted(run=self.id, reason=reason))]
        # A handler may return before it learns that the log did not take what it said last.
        self._error = self._error or self.emitter.error
        if self._error is None:
            try:
                return [self._event(payload) for payload in self._completed()]
            except EverlogError as error:  # the session holds what is not JSON
                self._error = error
        shown = (type(self._error), self._error, author_frames(self._error))
        log.error("run %s (%s) failed", self.id, self.hook, exc_info=shown)
        text = card(self._error)
        said = MessagePosted(message=uuid7(), role="assistant", content=text, level="error")
        failed = RunFailed(run=self.id, error=describe(self._error))
        return [self._event(said), self._event(failed)]

    def _completed(self) -> list[Payload]:
        ended: list[Payload] = []
        if self._context is not None:
            self._context.put_session()
            ended += [message.ended() for message in self._context.said if message.open]
        return [*ended, RunCompleted(run=self.id)]

    def _event(self, payload: Payload) -> NewEvent:
        return new(payload, actor=f"handler:{self.hook}", run=self.id)


def card(error: BaseException) -> str:
    """What a user is told about a failure: one line, no traceback."""
    if isinstance(error, LLMError):
        if error.code == "context":
            return "This conversation is longer than the model can read."
        if error.code == "timeout":
            return "The model did not answer in time."
        return f"The model could not answer: {error.message}"
    if isinstance(error, EverlogError):
        return error.message
    line = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__

"""One thread in this process: its state, and the runs that are made for it, one after the other."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from app.chat.commands import Ack, PostCommand
from app.chat.context import invoke
from app.chat.conversation import thread_dict
from app.chat.errors import LLMError, Refused
from app.chat.message import Message
from app.chat.run import Job, Run, Shared
from app.errors import EverlogError, InputError
from app.events.catalogue import (
    MessagePosted,
    RequestCancelled,
    RunInterrupted,
    RunResumed,
    RunStopped,
    ThreadCreated,
)
from app.events.codec import new
from app.events.envelope import NewEvent, thread_stream
from app.events.ids import uuid7
from app.events.lifecycle import TERMINAL
from app.events.store import ANY, Append, Appended, Conflict, Duplicate
from app.projections.state import MessageState, ThreadState, apply, empty

__all__ = ["ThreadRuns"]

log = logging.getLogger("everlog.chat")

PAGE = 1000


class ThreadRuns:
    """The thread's queue of jobs and its one active run.

    Its state is a cache of the log, brought up to date before every decision. ``lock`` guards
    decisions, so that two commands of one thread do not both find it idle.
    """

    def __init__(self, shared: Shared, thread: str) -> None:
        self.id = thread
        self.stream = thread_stream(thread)
        self.lock = asyncio.Lock()
        self.connections = 0
        self.opened = False
        self.timer: asyncio.TimerHandle | None = None
        self.run: Run | None = None
        self.worker: asyncio.Task[None] | None = None
        self._shared = shared
        self._state = empty(thread)
        self._jobs: deque[Job] = deque()

    @property
    def busy(self) -> bool:
        """Whether a run is under way or waits to begin."""
        return self.worker is not None

    async def refresh(self) -> ThreadState:
        """Bring the state up to date with the log."""
        state, store = self._state, self._shared.store
        while True:
            events = await store.fetch(after=state.version, stream=self.stream, limit=PAGE)
            for event in events:
                if event.version == state.version + 1:  # another refresh may have been faster
                    apply(state, event)
            if len(events) < PAGE:
                return state

    async def allowed(self, user: str, *, new_ok: bool = False) -> ThreadState:
        """Return the state, if the thread is there and the user's.

        Raises:
            Refused: It is not.

        """
        state = await self.refresh()
        if state.version == 0 and not new_ok:
            raise Refused("not_found", "there is no such thread")
        if state.owner not in (None, user):
            raise Refused("forbidden", "this thread is another user's")
        if state.deleted:
            raise Refused("not_found", "this thread was deleted")
        return state

    # ------------------------------------------------------------------------- commands

    async def post(self, command: PostCommand, user: str) -> Ack:
        """Append the user's message and begin its run, or leave it waiting for the run before."""
        while True:
            state = await self.allowed(user, new_ok=True)
            await self._check_ids(command, state)
            message = MessagePosted(
                message=command.message or uuid7(),
                role="user",
                content=command.content,
                author=user,
                parent=command.parent,
                metadata={"params": command.params} if command.params else {},
            )
            opening = self._opening(state)
            job = Job("on_message", _posted(message))
            jobs = [*opening, job]
            events = [new(message, actor=f"user:{user}", cause=command.id)]
            outcome, begun = await self._begin(user, events, jobs, command=command.id)
            if isinstance(outcome, Conflict):
                continue  # another process made the thread
            if isinstance(outcome, Duplicate):
                return Ack(outcome.version, outcome.seq)
            self.opened = True
            self._enqueue(begun)
            return Ack(outcome.version, outcome.last_seq)

    async def open(self, user: str) -> None:
        """Somebody looks at the thread: call the hooks for that, once in this process."""
        state = await self.allowed(user, new_ok=True)
        if self.opened:
            return None
        waiting = [] if self.busy else _waiting(state)
        jobs = [*self._opening(state), *(Job("on_message", m) for m in waiting)]
        if jobs and not self._shared.draining:
            outcome, begun = await self._begin(user, [], jobs)
            if isinstance(outcome, Conflict):
                return await self.open(user)
            self._enqueue(begun)
        self.opened = True
        return None

    async def halt(self, command: str, user: str, *, also: Sequence[NewEvent] = ()) -> Ack:
        """Stop the active runs and cancel the open requests, in one append with ``also``."""
        run = self.run
        if run is None:
            return await self._halt(command, user, also)
        async with run.emitter.writing:  # so that nothing of the run comes after its stop
            ack = await self._halt(command, user, also)
            if self._state.index.runs[run.id].status == "stopped":
                run.cut("stopped")
        return ack

    async def append(self, command: str, event: NewEvent) -> Ack:
        """Append one event of a command."""
        append = Append(stream=self.stream, events=[event], command=command)
        outcome = await self._shared.store.append(append)
        if isinstance(outcome, Duplicate):
            return Ack(outcome.version, outcome.seq)
        if not isinstance(outcome, Appended):
            raise EverlogError(f"the log refused the command: {outcome}")
        return Ack(outcome.version, outcome.last_seq)

    def call(self, hook: str) -> None:
        """Call a hook when what is under way has ended."""
        self._enqueue([Job(hook)])

    # ------------------------------------------------------------------------- recovery

    async def recover(self) -> None:
        """Take over or end the runs that a process of this name left, and begin what waits."""
        state = await self.refresh()
        events: list[NewEvent] = []
        jobs: list[Job] = []
        for run in state.runs:
            if run.status != "running" or run.node != self._shared.node:
                continue
            if run.id in self._shared.active:
                continue
            if run.resumable and self._shared.app.resumable:
                message = state.index.messages.get(run.message or "")
                events.append(new(RunResumed(run=run.id, node=self._shared.node), run=run.id))
                jobs.append(Job(run.hook, message, run=run.id, begun=True, resume=True))
            else:
                reason = "the server went away"
                events.append(new(RunInterrupted(run=run.id, reason=reason), run=run.id))
        jobs += [Job("on_message", message) for message in _waiting(state)]
        if events:
            _, begun = await self._begin(state.owner or "", events, jobs)
            self._enqueue(begun)

    # ------------------------------------------------------------------------- internal

    async def _begin(
        self, user: str, events: list[NewEvent], jobs: list[Job], *, command: str | None = None
    ) -> tuple[Appended | Conflict | Duplicate, list[Job]]:
        """Append ``events`` and, if the thread is idle, the beginning of the first job."""
        first = None if self.busy or not jobs or jobs[0].begun else jobs[0]
        expected = ANY
        if self._state.version == 0:
            expected = 0
            created = new(ThreadCreated(owner=user), actor=f"user:{user}", cause=command)
            events = [created, *events]
        if first is not None:
            events = [*events, first.started(self._shared)]
        if not events:
            return Appended(0, self._state.seq, self._state.version), jobs
        append = Append(stream=self.stream, events=events, expected=expected, command=command)
        outcome = await self._shared.store.append(append)
        if not isinstance(outcome, Appended | Conflict | Duplicate):
            raise EverlogError(f"the log refused the command: {outcome}")
        if first is not None and isinstance(outcome, Appended):
            first.begun = True
        return outcome, jobs

    def _opening(self, state: ThreadState) -> list[Job]:
        """Jobs for hooks that are due when the thread is first used in this process."""
        app = self._shared.app
        if self.opened:
            return []
        if not state.messages and not any(run.hook == "on_chat_start" for run in state.runs):
            return [Job("on_chat_start")] if app.has("on_chat_start") else []
        return [Job("on_chat_resume")] if app.has("on_chat_resume") and state.messages else []

    async def _check_ids(self, command: PostCommand, state: ThreadState) -> None:
        if command.parent is not None and command.parent not in state.index.messages:
            raise InputError("there is no such message in this thread", field="parent")
        if command.message is None or command.message not in state.index.messages:
            return
        version = state.index.messages[command.message].version
        found = await self._shared.store.fetch(after=version - 1, stream=self.stream, limit=1)
        if not found or found[0].cause != command.id:
            raise InputError("is the id of another message", field="message")

    async def _halt(self, command: str, user: str, also: Sequence[NewEvent]) -> Ack:
        store = self._shared.store
        while True:
            state = await self.refresh()
            actor = f"user:{user}"
            events = [
                new(RunStopped(run=run.id), actor=actor, run=run.id, cause=command)
                for run in state.runs
                if run.status == "running"
            ]
            for request in state.requests:
                if request.state not in TERMINAL:
                    ended = RequestCancelled(request=request.id, text=request.text)
                    of = {"request": request.id, "run": request.run}
                    events.append(new(ended, actor=actor, cause=command, **of))
            events += also
            if not events:
                return Ack(state.version, state.seq)
            outcome = await store.append(
                Append(stream=self.stream, events=events, expected=state.version, command=command)
            )
            if isinstance(outcome, Duplicate):
                return Ack(outcome.version, outcome.seq)
            if isinstance(outcome, Appended):
                await self.refresh()
                return Ack(outcome.version, outcome.last_seq)
            # Conflict or Closed: the engine was faster; look again. It writes a few times a
            # second and a look takes less than a millisecond, so this ends soon.

    def _enqueue(self, jobs: Sequence[Job]) -> None:
        self._jobs.extend(jobs)
        if self._jobs and self.worker is None:
            self.worker = self._shared.spawn(self._work)

    async def _work(self) -> None:
        try:
            while self._jobs:
                job = self._jobs.popleft()
                if self._shared.draining and not job.begun:
                    continue  # the next process begins it
                try:
                    await self._perform(job)
                except Exception:
                    log.exception("run %s of thread %s could not be made", job.run, self.id)
        finally:
            self.worker = None

    async def _perform(self, job: Job) -> None:
        if not job.begun:
            await self._begin_alone(job)
        run = self.run = Run(self._shared, self.id, job)
        self._shared.active[run.id] = run
        try:
            state = await self.refresh()
            if state.index.runs[job.run].status == "stopped":
                run.cut("stopped")
            await run.perform(state, self._body(job, state))
            await self._end(run)
        finally:
            run.emitter.close()
            self.run = None
            del self._shared.active[run.id]

    async def _begin_alone(self, job: Job) -> None:
        append = Append(stream=self.stream, events=[job.started(self._shared)])
        outcome = await self._shared.store.append(append)
        if not isinstance(outcome, Appended):
            raise EverlogError(f"the log refused the run: {outcome}")
        job.begun = True

    async def _end(self, run: Run) -> None:
        stopped = run.ending == "stopped" and run.hook != "on_stop"
        if stopped and self._shared.app.has("on_stop"):
            self._jobs.appendleft(Job("on_stop"))
        following = self._jobs[0] if self._jobs and not self._shared.draining else None
        if following is None or following.begun:
            await run.end()
            return
        await run.end(following.started(self._shared))
        following.begun = True

    def _body(self, job: Job, state: ThreadState) -> Callable[[], Awaitable[None]]:
        hook = self._shared.app.hooks.get(job.hook)
        given: list[object] = []
        if job.hook == "on_message" and job.message is not None:
            given.append(_incoming(job.message))
        elif job.hook == "on_chat_resume":
            given.append(thread_dict(state))
        waits = job.resume and any(request.run == job.run for request in state.requests)

        async def body() -> None:
            if waits:
                await self._await_requests(job.run)
            elif hook is not None:
                await invoke(hook, *given)

        return body

    async def _await_requests(self, run: str) -> None:
        """Wait for the engine requests of a run that another process began."""
        while True:
            state = await self.refresh()
            mine = [request for request in state.requests if request.run == run]
            if all(request.state in TERMINAL for request in mine):
                break
            await self._shared.store.wait(after=state.version, stream=self.stream)
        last = mine[-1]
        if last.state == "failed":
            raise LLMError(last.code or "error", last.message or "the request failed")


def _posted(message: MessagePosted) -> MessageState:
    return MessageState(
        id=message.message,
        role=message.role,
        content=message.content,
        author=message.author,
        parent=message.parent,
        metadata=message.metadata,
        version=0,
        created=0,
        updated=0,
    )


def _incoming(state: MessageState) -> Message:
    return Message(
        content=state.content,
        author=state.author,
        type="user_message",
        id=state.id,
        parent_id=state.parent,
        metadata=state.metadata,
    )


def _waiting(state: ThreadState) -> list[MessageState]:
    """User messages at the end of the thread for which no run was begun yet.

    Only in threads that had runs: what was imported is not answered after the fact.
    """
    begun = {run.message for run in state.runs}
    waiting: list[MessageState] = []
    for message in reversed(state.messages if state.runs else []):
        if message.role == "user" and message.run is None and message.id not in begun:
            if message.status != "removed":
                waiting.append(message)
        elif message.id in begun or message.run is None:
            break
    return waiting[::-1]

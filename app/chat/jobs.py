"""A thread's jobs in this process, made one after the other and behind those of other processes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from app.chat.context import invoke
from app.chat.conversation import thread_dict
from app.chat.errors import LLMError
from app.chat.message import Message
from app.chat.recovery import MAX_RESUMES, left_open, resumes
from app.chat.run import Job, Run, Shared
from app.errors import EverlogError
from app.events.catalogue import RunInterrupted, RunResumed, ThreadCreated
from app.events.codec import new
from app.events.envelope import NewEvent, actor_of, thread_stream
from app.events.lifecycle import TERMINAL
from app.events.store import (
    ANY,
    Append,
    Appended,
    Conflict,
    Duplicate,
    StoreClosed,
    StoreError,
)
from app.projections.state import MessageState, RunState, ThreadState, apply_all, empty

__all__ = ["FROM_API", "ThreadJobs", "running", "waits"]

log = logging.getLogger("everlog.chat")

PAGE = 1000

FROM_API = "api"
"""Key in the metadata of messages that came through the API: handlers do not answer them."""

AGAIN = 1.0
"""Seconds until something that the log did not take is tried again."""


class ThreadJobs:
    """The thread's queue of jobs and its one active run.

    Its state is a cache of the log, brought up to date before every decision, and what begins or
    ends a run is written only if the thread is still where it was when that was decided: so of
    several processes one begins the next run.
    """

    def __init__(self, shared: Shared, thread: str) -> None:
        self.id = thread
        self.stream = thread_stream(thread)
        self.run: Run | None = None
        self.worker: asyncio.Task[None] | None = None
        self._shared = shared
        self._state = empty(thread)
        self._jobs: deque[Job] = deque()
        self._writes = 0  # what was read while one was made may lack it
        self._behind = False  # an append met what this process had not heard of

    @property
    def busy(self) -> bool:
        """Whether a run is under way or waits to begin."""
        return self.worker is not None

    async def refresh(self, *, fresh: bool = True) -> ThreadState:
        """Bring the state up to date with the log, and with all that was written from here.

        Unless ``fresh``, what other processes wrote a moment ago may be left out; enough for
        decisions whose append expects the thread where the state has it, and it spares a look
        into the database.
        """
        state, store = self._state, self._shared.store
        if self._behind:
            fresh, self._behind = True, False
        while True:
            written = self._writes
            events = await store.fetch(
                after=state.version, stream=self.stream, limit=PAGE, fresh=fresh
            )
            # Another refresh may have been faster.
            apply_all(state, [event for event in events if event.version > state.version])
            if len(events) < PAGE and written == self._writes:
                return state

    def forget(self) -> None:
        """Read the state from the beginning next time: content of it was erased in the log."""
        self._state = empty(self.id)

    # ------------------------------------------------------------------------- recovery

    async def recover(self) -> None:
        """Take over or end the runs whose process is gone, and begin what waits.

        Several processes may try at once: one of them does it.
        """
        while not self._shared.draining:
            state = await self.refresh()
            left = [run for run in running(state) if self._shared.left_behind(run.id, run.node)]
            waiting = not (self.busy or running(state)) and waits(state)
            if not (left or waiting) or await self._take(state, left):
                return

    async def _take(self, state: ThreadState, left: list[RunState]) -> bool:
        """End or take over ``left``; False if another process wrote to the thread meanwhile."""
        shared = self._shared
        events: list[NewEvent] = []
        jobs: list[Job] = []
        for run in left:
            reason = await self._refusal(run)
            if reason is not None:
                events.append(new(RunInterrupted(run=run.id, reason=reason), run=run.id))
                continue
            message = state.index.messages.get(run.message or "")
            events.append(new(RunResumed(run=run.id, node=shared.node), run=run.id))
            events += [] if shared.app.waits else left_open(state, run)
            jobs.append(Job(run.hook, message, run=run.id, begun=True, resume=True))
        others = len(jobs) or len(running(state)) - len(left) or self.busy
        waiting = [] if others else [Job("on_message", message) for message in waits(state)]
        events += [job.started(shared) for job in waiting[:1]]
        if not await self._append(events, state.version, begins=[*jobs, *waiting[:1]]):
            return False
        for job in reversed(jobs):
            self._jobs.appendleft(job)
        self.enqueue(waiting)
        return True

    async def _refusal(self, run: RunState) -> str | None:
        """Why a run that was left behind ends, instead of being taken over."""
        app = self._shared.app
        if not (run.resumable and app.resumable):
            return "the server went away"
        if not app.waits and await resumes(self._shared.store, self.stream, run) >= MAX_RESUMES:
            return f"the server went away {MAX_RESUMES + 1} times in the middle of it"
        return None

    async def verify(self) -> None:
        """Look whether the active run is still this process's to make."""
        if self.run is not None:
            check(self.run, await self.refresh(), self._shared.node)

    # ------------------------------------------------------------------------- writing

    async def _begin(
        self, user: str, events: list[NewEvent], jobs: list[Job], *, command: str | None = None
    ) -> Appended | Conflict | Duplicate:
        """Append ``events`` and, if the thread is idle, the beginning of the first job.

        Idle is one where no message waits either: another process may be about to begin its run.
        """
        state = self._state
        first = [] if self.busy or running(state) or waits(state) else jobs[:1]
        expected = state.version if first else ANY
        if state.version == 0:
            expected = 0
            created = new(ThreadCreated(owner=user), actor=actor_of(user), cause=command)
            events = [created, *events]
        events = [*events, *(job.started(self._shared) for job in first)]
        if not events:
            return Appended(0, state.seq, state.version)
        return await self._written(events, expected, begins=first, command=command)

    async def _append(self, events: list[NewEvent], expected: int, *, begins: list[Job]) -> bool:
        """Append what was decided at version ``expected``; False if that is past."""
        return isinstance(await self._written(events, expected, begins=begins), Appended)

    async def _written(
        self,
        events: list[NewEvent],
        expected: int,
        *,
        begins: list[Job],
        command: str | None = None,
    ) -> Appended | Conflict | Duplicate:
        """Append ``events``, which begin ``begins`` or take them over."""
        ours = self._shared.ours
        ours.update(job.run for job in begins)
        done = False
        try:
            append = Append(stream=self.stream, events=events, expected=expected, command=command)
            outcome = await self._shared.store.append(append)
            if not isinstance(outcome, Appended | Conflict | Duplicate):
                raise EverlogError(f"the log refused the command: {outcome}")
            done = isinstance(outcome, Appended)
            self._writes += 1
            self._behind = self._behind or isinstance(outcome, Conflict)
            return outcome
        finally:
            for job in begins:
                job.begun = done
                if not done:
                    ours.discard(job.run)

    # ------------------------------------------------------------------------- working

    def enqueue(self, jobs: Sequence[Job]) -> None:
        """Make these jobs after those that wait already."""
        self._jobs.extend(jobs)
        if self._jobs and self.worker is None:
            self.worker = self._shared.spawn(self._work)

    async def _work(self) -> None:
        try:
            while (job := await self._next()) is not None:
                try:
                    await self._perform(job)
                except Exception:
                    log.exception("run %s of thread %s could not be made", job.run, self.id)
        finally:
            self.worker = None

    async def _next(self) -> Job | None:
        """Wait until the next job may be made here, and see that it is begun; None: there is none.

        While another process has a run in this thread, jobs wait behind it.
        """
        while True:
            try:
                state = await self.refresh(fresh=False)
                job = self._due(state)
                if job is None or (self._shared.draining and not job.begun):
                    return None  # what was not begun is the next process's
                if not job.begun and running(state):
                    await self._pause(state.version)
                    continue
                started = [] if job.begun else [job.started(self._shared)]
                if not started or await self._append(started, state.version, begins=[job]):
                    self._jobs.remove(job)
                    return job
            except StoreClosed:
                return None
            except StoreError as error:
                log.warning("thread %s: %s; trying again", self.id, error)
                await asyncio.sleep(AGAIN)

    def _due(self, state: ThreadState) -> Job | None:
        """The job to make next. Which message is answered next is read from the log."""
        begun = next((job for job in self._jobs if job.begun), None)
        if begun is not None:
            return begun
        waiting = waits(state)
        while self._jobs:
            job = self._jobs[0]
            if job.hook != "on_message":
                return job
            if waiting:
                job.message = waiting[0]
                return job
            self._jobs.popleft()  # another process has begun it
        if waiting:
            self._jobs.append(Job("on_message", waiting[0]))
        return self._jobs[0] if self._jobs else None

    async def _pause(self, version: int) -> None:
        """Wait until something is written behind ``version``, or this process drains."""
        changed = self._shared.store.wait(after=version, stream=self.stream)
        tasks = [asyncio.ensure_future(changed), asyncio.ensure_future(self._shared.drained.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _perform(self, job: Job) -> None:
        run = self.run = Run(self._shared, self.id, job)
        self._shared.active[run.id] = run
        try:
            state = await self.refresh(fresh=False)
            check(run, state, self._shared.node)
            await run.perform(state, self._body(job, state))
            await self._end(run)
        finally:
            run.emitter.close()
            self.run = None
            del self._shared.active[run.id]
            self._shared.ours.discard(run.id)

    async def _end(self, run: Run) -> None:
        """Write how a run ended, and in the same append the beginning of what follows."""
        stopped = run.ending == "stopped" and run.hook != "on_stop"
        if stopped and self._shared.app.has("on_stop"):
            self._jobs.appendleft(Job("on_stop"))
        while True:
            try:
                state = await self.refresh(fresh=False)
                check(run, state, self._shared.node)
                if await self._ended(run, self._following(run, state), state.version):
                    return
            except StoreClosed:
                raise
            except StoreError as error:
                log.warning("the end of run %s must wait: %s", run.id, error)
                await asyncio.sleep(AGAIN)

    async def _ended(self, run: Run, following: list[Job], expected: int) -> bool:
        """Write a run's end and the beginning of ``following``; False: not at ``expected``."""
        ours = self._shared.ours
        ours.update(job.run for job in following)
        done = False
        try:
            events = [job.started(self._shared) for job in following]
            done = await run.end(*events, expected=expected)
            self._behind = self._behind or not done
            return done
        finally:
            for job in following:
                job.begun = done
                if not done:
                    ours.discard(job.run)

    def _following(self, run: Run, state: ThreadState) -> list[Job]:
        """The job to begin with a run's end, if this process is to begin any."""
        others = any(other.id != run.id for other in running(state))
        if others or run.ending == "lost" or self._shared.draining:
            return []
        job = self._due(state)
        return [] if job is None or job.begun else [job]

    def _body(self, job: Job, state: ThreadState) -> Callable[[], Awaitable[None]]:
        hook = self._shared.app.hooks.get(job.hook)
        given: list[object] = []
        if job.hook == "on_message" and job.message is not None:
            given.append(_incoming(job.message))
        elif job.hook == "on_chat_resume":
            given.append(thread_dict(state))
        waits = (
            self._shared.app.waits
            and job.resume
            and any(request.run == job.run for request in state.requests)
        )

        async def body() -> None:
            if waits:
                await self._await_requests(job.run)
            elif hook is not None:
                await invoke(hook, *given)

        return body

    async def _await_requests(self, run: str) -> None:
        """Wait for the engine requests of a run that another process began."""
        while True:
            state = await self.refresh(fresh=False)
            mine = [request for request in state.requests if request.run == run]
            if all(request.state in TERMINAL for request in mine):
                break
            await self._shared.store.wait(after=state.version, stream=self.stream)
        last = mine[-1]
        if last.state == "failed":
            raise LLMError(last.code or "error", last.message or "the request failed")


def running(state: ThreadState) -> list[RunState]:
    """The runs that have not ended."""
    return [run for run in state.runs if run.status == "running"]


def check(run: Run, state: ThreadState, node: str) -> None:
    """Cut a run that was stopped, or that another process has taken over or ended."""
    found = state.index.runs.get(run.id)
    if found is None or found.status == "stopped":
        run.cut("stopped")
    elif found.status != "running" or found.node != node:
        run.cut("lost")


def _incoming(state: MessageState) -> Message:
    return Message(
        content=state.content,
        author=state.author,
        type="user_message",
        id=state.id,
        parent_id=state.parent,
        metadata=state.metadata,
    )


def waits(state: ThreadState) -> list[MessageState]:
    """User messages at the end of the thread for which no run was begun yet.

    Only in threads that had runs: what was imported is not answered after the fact. What came
    through the API is answered there, or not at all.
    """
    if state.deleted:
        return []
    begun = {run.message for run in state.runs}
    waiting: list[MessageState] = []
    for message in reversed(state.messages if state.runs else []):
        asked = message.role == "user" and message.run is None and message.id not in begun
        if asked and FROM_API not in message.metadata:
            if message.status != "removed":
                waiting.append(message)
        elif message.id in begun or message.run is None:
            break
    return waiting[::-1]

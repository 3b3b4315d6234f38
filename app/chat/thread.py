"""One thread as the commands and connections of this process see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext

from app.chat.admission import Full
from app.chat.commands import Ack, PostCommand
from app.chat.errors import Refused
from app.chat.jobs import ThreadJobs, waits
from app.chat.run import Job, Shared
from app.errors import EverlogError, InputError
from app.events.catalogue import (
    MessagePosted,
    RequestCancelled,
    RunStopped,
)
from app.events.codec import new
from app.events.envelope import NewEvent, actor_of
from app.events.ids import uuid7
from app.events.lifecycle import TERMINAL
from app.events.store import (
    Append,
    Appended,
    Conflict,
    Duplicate,
)
from app.projections.state import MessageState, ThreadState

__all__ = ["ThreadRuns"]


class ThreadRuns(ThreadJobs):
    """A thread as commands and connections see it.

    ``lock`` guards decisions within this process, so that two commands of one thread do not both
    find it idle.
    """

    def __init__(self, shared: Shared, thread: str) -> None:
        super().__init__(shared, thread)
        self.lock = asyncio.Lock()
        self.connections = 0
        self.opened = False
        self.timer: asyncio.TimerHandle | None = None

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
            events = [new(message, actor=actor_of(user), cause=command.id)]
            known = command.message in state.index.messages  # it may have taken effect before
            async with nullcontext() if known else self._room(user):
                outcome = await self._begin(user, events, jobs, command=command.id)
            if isinstance(outcome, Conflict):
                continue  # another process wrote to the thread; look again
            if isinstance(outcome, Duplicate):
                return Ack(outcome.version, outcome.seq)
            self.opened = True
            self.enqueue(jobs)
            return Ack(outcome.version, outcome.last_seq)

    @asynccontextmanager
    async def _room(self, user: str) -> AsyncIterator[None]:
        try:
            async with self._shared.admission.room(actor_of(user)):
                yield
        except Full as full:
            raise Refused("limit", full.message) from None

    async def open(self, user: str) -> None:
        """Somebody looks at the thread: call the hooks for that, once in this process.

        Messages that wait and that nobody is about to answer are answered, however often it was
        looked at before: who took them may have gone away since, and had nothing begun.
        """
        state = await self.allowed(user, new_ok=True)
        waiting = [] if self.busy else waits(state)
        jobs = [*self._opening(state), *(Job("on_message", m) for m in waiting)]
        if jobs and not self._shared.draining:
            outcome = await self._begin(user, [], jobs)
            if isinstance(outcome, Conflict):
                return await self.open(user)
            self.enqueue(jobs)
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
        self.enqueue([Job(hook)])

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
            actor = actor_of(user)
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
            # Conflict or Closed: the engine or another process was faster; look again. The engine
            # writes a few times a second and a look takes about a millisecond, so this ends soon.


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

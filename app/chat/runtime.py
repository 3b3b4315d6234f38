"""The runtime: takes commands, calls handlers, and ends every run in the log.

Nothing here knows of sockets. A thread's runs are made one after the other, in the order of its
messages; threads run beside each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import anyio
from anyio.abc import TaskStatus

from app.chat.admission import Admission
from app.chat.commands import (
    Ack,
    Command,
    DeleteCommand,
    FeedbackCommand,
    PostCommand,
    RenameCommand,
    StopCommand,
)
from app.chat.errors import Refused
from app.chat.hooks import ChatApp
from app.chat.recovery import unfinished_threads, waiting_threads
from app.chat.run import GRACE, Shared
from app.chat.thread import ThreadRuns
from app.config import ChatConfig, ServerConfig, StreamConfig
from app.errors import EverlogError, InputError
from app.events.catalogue import MessageFeedback, RunResumed, ThreadDeleted, ThreadRenamed
from app.events.codec import new, readable
from app.events.envelope import Event, actor_of
from app.events.follow import following
from app.events.presence import Presence
from app.events.store import EventStore, StoreClosed
from app.projections.views import Views

__all__ = ["CHAT_END_SECONDS", "Runtime"]

log = logging.getLogger("everlog.chat")

#: Seconds after a thread's last connection closed until ``on_chat_end``; longer than a reload, a
#: change of network or a short sleep of the laptop.
CHAT_END_SECONDS = 300.0

#: Idle threads kept in memory, so that the next command need not read them from the log.
MAX_IDLE = 256


class Runtime:
    """Runs one chat app over one log.

    Args:
        store: The log.
        app: The author's hooks; `reload` replaces them.
        node: Name of this process, the same after a restart and nobody else's.
        presence: How others know that it is alive; by default under the name ``node``.
        views: Read models, to find unfinished runs without reading the log; None reads it.
        stream: How streamed text is batched into events.
        chat: Defaults of ``llm``.
        server: How many requests may wait.
        chat_end_seconds: See `CHAT_END_SECONDS`.

    """

    def __init__(
        self,
        store: EventStore,
        app: ChatApp,
        *,
        node: str = "node",
        presence: Presence | None = None,
        views: Views | None = None,
        stream: StreamConfig | None = None,
        chat: ChatConfig | None = None,
        server: ServerConfig | None = None,
        chat_end_seconds: float = CHAT_END_SECONDS,
    ) -> None:
        self._store = store
        self._views = views
        self._chat_end_seconds = chat_end_seconds
        self.presence = presence or Presence(store, node)
        self.admission = Admission(store, server or ServerConfig())
        self._shared = Shared(
            store,
            app,
            self.presence,
            stream or StreamConfig(),
            chat or ChatConfig(),
            self.admission,
        )
        self._threads: dict[str, ThreadRuns] = {}
        self._crowded = MAX_IDLE
        self._recovered = asyncio.Event()
        self._nodes: frozenset[str] | None = None  # alive when it was last swept

    @property
    def app(self) -> ChatApp:
        """The app in use."""
        return self._shared.app

    @property
    def active(self) -> int:
        """How many runs are under way."""
        return len(self._shared.active)

    async def run(
        self,
        *,
        ready: Callable[[], None] | None = None,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Recover, then serve until cancelled.

        Args:
            ready: Called once, when commands are taken.
            task_status: The same for `anyio.abc.TaskGroup.start`.

        Cancelled without `drain`, it leaves runs open in the log, as a crash does: the next start
        of this node, or another node, ends or resumes them.

        Raises:
            StartupError: Another process that is alive has this name.

        """
        head = await self._store.head()
        await self.presence.enter()
        async with asyncio.TaskGroup() as tasks:
            self._shared.tasks = tasks
            try:
                tasks.create_task(self.presence.run(self._regained))
                await self._sweep()
                self._recovered.set()
                if ready is not None:
                    ready()
                task_status.started()
                tasks.create_task(self._keep_sweeping())
                await self._follow_ends(head)
            finally:
                self._shared.tasks = None
                for runs in self._threads.values():
                    _cancel_timer(runs)

    async def reload(self, app: ChatApp) -> None:
        """Use another app from the next run on; runs under way end with the old one."""
        self._shared.app = app

    async def drain(self, seconds: float = 10.0) -> None:
        """Refuse commands, give handlers until the deadline, then end them as interrupted.

        Resumable runs are left open: another process, or the next one, takes them over. Those
        that only wait for the engine are cut at once.
        """
        self._shared.drained.set()
        for run in [run for run in self._shared.active.values() if run.waits]:
            await run.interrupt()
        await self._settled(seconds)
        for run in list(self._shared.active.values()):
            await run.interrupt()
        await self._settled(GRACE + 1)
        await self.presence.leave()

    # ------------------------------------------------------------------------- commands

    async def post(self, command: PostCommand, user: str) -> Ack:
        """Take a user's message: durable, with the beginning of its run, when this returns.

        While a run is active the message is taken all the same and its own run begins after it.

        Raises:
            InputError: A field is wrong; nothing changed.
            Refused: ``forbidden``, ``not_found`` (deleted), ``draining`` or ``limit``.

        """
        runs = await self._accept(command)
        async with runs.lock:
            return await runs.post(command, user)

    async def stop(self, command: StopCommand, user: str) -> Ack:
        """Stop the thread's active runs and cancel its open requests. Messages that wait go on.

        Raises:
            InputError: A field is wrong.
            Refused: ``not_found``, ``forbidden``.

        """
        command.check()
        await self._recovered.wait()
        runs = self._thread(command.thread)
        async with runs.lock:
            await runs.allowed(user)
            return await runs.halt(command.id, user)

    async def rename(self, command: RenameCommand, user: str) -> Ack:
        """Give the thread a title. Raises as `post` does."""
        runs = await self._accept(command)
        async with runs.lock:
            await runs.allowed(user)
            event = ThreadRenamed(title=command.title.strip())
            return await runs.append(command.id, new(event, actor=actor_of(user), cause=command.id))

    async def delete(self, command: DeleteCommand, user: str) -> Ack:
        """Stop the thread and hide it; ``on_chat_end`` is called. Deleting twice is no error."""
        runs = await self._accept(command)
        async with runs.lock:
            state = await runs.refresh()
            if not (state.deleted and state.owner == user):
                await runs.allowed(user)
            event = new(ThreadDeleted(), actor=actor_of(user), cause=command.id)
            ack = await runs.halt(command.id, user, also=[] if state.deleted else [event])
            self._end_chat(runs)
            return ack

    async def feedback(self, command: FeedbackCommand, user: str) -> Ack:
        """Judge a message of the app. Raises as `post` does."""
        runs = await self._accept(command)
        async with runs.lock:
            state = await runs.allowed(user)
            message = state.index.messages.get(command.message)
            if message is None or message.role == "user":
                raise InputError("is not an answer in this thread", field="message")
            event = MessageFeedback(
                message=command.message, value=command.value, comment=command.comment
            )
            return await runs.append(command.id, new(event, actor=actor_of(user), cause=command.id))

    # ---------------------------------------------------------------------- connections

    async def connected(self, thread: str, user: str) -> None:
        """Somebody opened the thread; returns without waiting for the hooks this calls.

        ``on_chat_start`` is called if the thread is new, ``on_chat_resume`` if it has messages
        and nobody had it open in this process.

        Raises:
            Refused: ``forbidden``.

        """
        await self._recovered.wait()
        runs = self._thread(thread)
        async with runs.lock:
            await runs.open(user)
            runs.connections += 1
            _cancel_timer(runs)

    async def disconnected(self, thread: str, user: str) -> None:
        """A connection that had opened the thread is gone. Cancels nothing.

        ``on_chat_end`` is called when the last one stays away for ``chat_end_seconds``.
        """
        runs = self._threads.get(thread)
        if runs is None or not runs.connections:
            return
        runs.connections -= 1
        if not runs.connections and self._shared.tasks is not None:
            loop = asyncio.get_running_loop()
            _cancel_timer(runs)
            runs.timer = loop.call_later(self._chat_end_seconds, self._end_chat, runs)

    # ------------------------------------------------------------------------- internal

    async def _accept(self, command: Command) -> ThreadRuns:
        command.check()
        await self._recovered.wait()  # or recovery would take a new run for an abandoned one
        await self.presence.sure()
        if self._shared.draining or self._shared.tasks is None:
            raise Refused("draining", "the server is shutting down", hint="Send it again soon.")
        return self._thread(command.thread)

    def _thread(self, thread: str) -> ThreadRuns:
        runs = self._threads.pop(thread, None) or ThreadRuns(self._shared, thread)
        self._threads[thread] = runs  # at the end: the least recently used stand in front
        if len(self._threads) > self._crowded:
            self._forget_idle()
            # Those in use stay; looking through all again waits until there are twice as many.
            self._crowded = max(MAX_IDLE, 2 * len(self._threads))
        return runs

    def _forget_idle(self) -> None:
        idle = [
            runs
            for runs in self._threads.values()
            if not (runs.busy or runs.connections or runs.timer or runs.lock.locked())
        ]
        for runs in idle[: max(len(idle) - MAX_IDLE // 2, 0)]:
            del self._threads[runs.id]

    def _end_chat(self, runs: ThreadRuns) -> None:
        _cancel_timer(runs)
        if runs.opened and self._shared.app.has("on_chat_end") and not self._shared.draining:
            runs.call("on_chat_end")
        runs.opened = False

    async def _sweep(self) -> None:
        """Recover the threads whose runs have nobody who makes them.

        Also those with messages that wait, after a node went away: one that drains begins nothing
        more, and nobody else has heard of what it took.
        """
        left_behind, nodes = self._shared.left_behind, self.presence.nodes
        threads = await unfinished_threads(self._store, self._views, left_behind)
        if self._nodes is None or self._nodes - nodes:
            threads += await waiting_threads(self._store, self._views)
        for thread in threads:
            await self._thread(thread).recover()
        self._nodes = nodes

    async def _keep_sweeping(self) -> None:
        """Sweep after every beat: one of those that are alive takes over from who is gone."""
        while not self._shared.draining:
            await self.presence.beat()
            try:
                await self._sweep()
            except StoreClosed:
                raise
            except EverlogError as error:
                log.warning("cannot look for runs of nodes that are gone: %s", error)

    async def _regained(self) -> None:
        """This process was away for longer than its lease: cut what others have taken over."""
        for runs in list(self._threads.values()):
            await runs.verify()

    async def _follow_ends(self, head: int) -> None:
        """Cut runs that were stopped, whichever process took the command, or taken over.

        When content was erased from the log, forget what was read of it.
        """
        types = ("run.stopped", "run.interrupted", "run.resumed", "log.redacted")
        async for events in following(self._store, after=head, types=types):
            for event in events:
                if event.type == "log.redacted":
                    for runs in self._threads.values():
                        runs.forget()
                run = self._shared.active.get(event.run or "")
                if run is None:
                    continue
                if event.type == "run.stopped":
                    run.cut("stopped")
                elif event.type == "run.interrupted" or _taker(event) != self._shared.node:
                    run.cut("lost")

    async def _settled(self, seconds: float) -> None:
        workers = [runs.worker for runs in self._threads.values() if runs.worker is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if workers:
                    await asyncio.wait(workers)


def _cancel_timer(runs: ThreadRuns) -> None:
    if runs.timer is not None:
        runs.timer.cancel()
        runs.timer = None


def _taker(event: Event) -> str | None:
    payload = readable(event)
    return payload.node if isinstance(payload, RunResumed) else None

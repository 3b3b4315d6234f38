"""The engine host: takes requests from the log, has a core compute them, writes what comes out.

Everything it does can be lost: a new host finds in the log what there is to do. All that a request
becomes is written under the fence of its claim; a refusal means that it is no longer ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from app.config import EngineConfig, StreamConfig
from app.engine.claiming import Claimer
from app.engine.claims import Claims
from app.engine.deadlines import Deadlines
from app.engine.frames import Ready, Step, core_config
from app.engine.supervisor import Backoff, CoreProcess
from app.engine.workers import presence_name, worker_stream
from app.errors import StartupError, cause
from app.events import codec
from app.events.catalogue import Payload, WorkerCrashed, WorkerDrained, WorkerStarted
from app.events.envelope import Event
from app.events.follow import following
from app.events.presence import Presence
from app.events.store import Append, EventStore, StoreClosed, StoreError

__all__ = ["EngineHost"]

log = logging.getLogger(__name__)

_WATCHED = (
    *("request.queued", "request.abandoned", "request.cancelled", "request.failed"),
    "worker.lost",
)


class EngineHost:
    """Runs requests of a log on this machine.

    Attributes:
        model: What the core loaded; None before it is ready.
        state: ``starting``, ``ready``, ``restarting`` (the core died), ``stopped`` or ``failed``.

    Args:
        store: The log.
        config: The engine; ``model`` is a path, or a name that ``resolve`` knows.
        worker: Name of this worker, unique among all that share the log, the same at every start.
        stream: How tokens are batched into events.
        resolve: Path of a model's files by its name.
        presence: How others know that this worker is alive; by default under its name.

    """

    def __init__(
        self,
        store: EventStore,
        config: EngineConfig,
        *,
        worker: str,
        stream: StreamConfig | None = None,
        resolve: Callable[[str], str] = str,
        presence: Presence | None = None,
    ) -> None:
        self.model: Ready | None = None
        self.state = "starting"
        self._store = store
        self._config = config
        self._worker = worker
        self._resolve = resolve
        self.presence = presence or Presence(store, presence_name(worker))
        self._claims = Claims(
            store,
            stream or StreamConfig(),
            worker=worker,
            freed=lambda: self._claimer.freed(),
            private=config.prefix_scope == "tenant",
        )
        self._claimer = Claimer(store, config, self._claims, worker=worker, presence=self.presence)
        self._deadlines = Deadlines(store, self._claims.holds)
        self._lost = False  # authority: claims must be given back before new ones are made
        self._alarm = asyncio.Event()
        self._draining = False
        self._drained = asyncio.Lock()
        self._entered = False
        self._scope = anyio.CancelScope()
        self._used = 0

    @property
    def cache_usage(self) -> float:
        """Part of the KV cache's blocks that requests own, 0 to 1, after the last step."""
        if self.model is None or not len(self._claims):
            return 0.0
        return min(1.0, self._used / max(1, self.model.blocks))

    # -------------------------------------------------------------------------------- life

    async def run(
        self,
        *,
        ready: Callable[[], None] | None = None,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled or drained; restarts the core when it dies.

        Args:
            ready: Called once, when the model is loaded and requests are taken.
            task_status: The same for `anyio.abc.TaskGroup.start`.

        Raises:
            StartupError: The core cannot be started the first time, or another worker has this
                name.
            StoreError: The log was closed under it.

        """
        try:
            with self._scope:
                head = await self._store.head()
                await self.presence.enter()
                self._entered = True
                await self._store.expire(worker=self._worker, reason="the worker was restarted")
                async with _group() as group:
                    group.start_soon(self.presence.run)
                    core = await self._launch()
                    if ready is not None:
                        ready()
                    task_status.started()
                    await self._serve(core, head)
        except BaseException as error:
            self.state = "failed" if isinstance(error, Exception) else self.state
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await self.drain()

    async def drain(self) -> None:
        """Give everything back, so that the next start goes on from it, and stop the core.

        What the core produced until now is committed first. `run` returns afterwards.
        """
        async with self._drained:
            if self._draining:
                return
            self._draining = True
            failed = self.state == "failed"
            self._claimer.pause()
            self._claims.give_up()
            try:
                if self._entered:  # else the name is another's
                    await self._claims.flusher.flush(everything=True)
                    await self._store.expire(worker=self._worker, reason="drained")
                    await self._tell(WorkerDrained(worker=self._worker))
                    await self.presence.leave()
            except StoreError as error:
                log.warning("could not give requests back: %s; they wait for their lease", error)
            finally:
                core, self._claims.core = self._claims.core, None
                if core is not None:
                    await core.stop()
                self.state = "failed" if failed else "stopped"
                self._scope.cancel()

    async def _serve(self, core: CoreProcess, head: int) -> None:
        async with _group() as group:
            group.start_soon(self._watch, head)
            group.start_soon(self._keep_leases)
            group.start_soon(self._write)
            group.start_soon(self._deadlines.run)
            group.start_soon(self._compute, core)

    async def _launch(self) -> CoreProcess:
        path = await asyncio.to_thread(self._resolve, self._config.model)
        core = await CoreProcess.launch(core_config(self._config, path))
        self._claims.core = core
        self.model = core.ready
        await self._tell_started(core)
        self.state = "ready"
        self._claimer.opened()
        return core

    async def _compute(self, core: CoreProcess) -> None:
        """Use one core after the other."""
        backoff = Backoff()
        while True:
            async with anyio.create_task_group() as group:
                group.start_soon(self._claimer.run, core, self._lose)
                if await self._read(core):
                    backoff.reset()
                group.cancel_scope.cancel()
            if self._draining:
                return
            self.state = "restarting"
            await self._crashed(await core.ended())
            core = await self._relaunch(backoff)

    async def _relaunch(self, backoff: Backoff) -> CoreProcess:
        while True:
            await asyncio.sleep(backoff.next())
            try:
                return await self._launch()
            except StartupError as error:
                log.error("%s; trying again", error)

    async def _crashed(self, reason: str) -> None:
        """Write down what was lost with a core; its requests go back into the queue."""
        requests = self._claims.crashed(reason)
        log.error("%s; %d requests go on with the next one", reason, len(requests))
        try:
            await self._claims.flusher.flush(everything=True)
            await self._tell(WorkerCrashed(worker=self._worker, reason=reason, requests=requests))
            await self._store.expire(worker=self._worker, reason=f"crash: {reason}")
        except StoreError as error:
            self._lose(error)

    # -------------------------------------------------------------------------- log -> core

    async def _watch(self, after: int) -> None:
        """Follow what concerns the queue."""
        await self._deadlines.load()
        async for events in following(self._store, after=after, types=_WATCHED):
            for event in events:
                if event.type != "worker.lost":
                    self._saw(event)
                elif event.stream == worker_stream(self._worker) and self._claims.core:
                    await self._tell_started(self._claims.core)  # we were away, and are back

    def _saw(self, event: Event) -> None:
        if event.type == "request.queued":
            self._deadlines.note(event)
            self._claimer.queued(event)
            return
        request = event.request or ""
        if event.type == "request.abandoned":
            self._claimer.abandoned()
            self._claims.lost(request, epoch=_epoch(event.data))
        else:
            self._claims.lost(request)

    async def _read(self, core: CoreProcess) -> bool:
        """Take in frames until the core is gone; returns whether it computed anything."""
        worked = False
        while frames := await core.receive():
            for frame in frames:
                if isinstance(frame, Step):
                    worked, self._used = True, frame.used
                self._claims.handle(frame)
        return worked

    async def _write(self) -> None:
        while True:
            try:
                await self._claims.flusher.run()
            except StoreError as error:
                self._lose(error)

    def _lose(self, error: StoreError) -> None:
        """The log did not take our word: whatever we hold may be another's by now.

        Raises:
            StoreClosed: There is no log any more.

        """
        if isinstance(error, StoreClosed):
            raise error
        log.error("lost authority over %d requests: %s", len(self._claims), error)
        self._lost = True
        self._claimer.pause()
        self._alarm.set()
        self._claims.lost_all()

    async def _keep_leases(self) -> None:
        """Renew our leases, and sweep up those of workers that did not."""
        lease = self._config.lease_seconds
        while True:
            with anyio.move_on_after(lease / 3):
                await self._alarm.wait()
                self._alarm.clear()
                await asyncio.sleep(min(1.0, lease / 3))
            mine = self._claims.fences()
            try:
                if self._lost:
                    await self._store.expire(worker=self._worker, reason="lost authority")
                    self._lost = False
                    if not self._draining:
                        self._claimer.resume()
                held = set(await self._store.heartbeat(worker=self._worker, lease=lease))
                await self._store.expire()
            except StoreError as error:
                self._lose(error)
                continue
            for fence in mine:
                if fence not in held:
                    self._claims.lost(fence.request, epoch=fence.epoch)

    async def _tell_started(self, core: CoreProcess) -> None:
        await self._tell(
            WorkerStarted(
                worker=self._worker,
                model=core.ready.model,
                weights=core.ready.weights,
                device=core.ready.device,
                pid=core.pid,
                context=core.ready.context,
                blocks=core.ready.blocks,
            )
        )

    async def _tell(self, payload: Payload) -> None:
        """Append an event about this worker."""
        event = codec.new(payload, actor=f"engine:{self._worker}")
        try:
            await self._store.append(Append(stream=worker_stream(self._worker), events=[event]))
        except StoreClosed:
            raise
        except StoreError as error:  # a note for people; nothing depends on it
            log.warning("could not write %s: %s", event.type, error)


@contextlib.asynccontextmanager
async def _group() -> AsyncIterator[TaskGroup]:
    """A task group that raises the first error itself."""
    try:
        async with anyio.create_task_group() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise cause(errors) from None


class _Abandoned(msgspec.Struct):
    epoch: int


_abandoned = msgspec.json.Decoder(_Abandoned)


def _epoch(data: bytes) -> int:
    return _abandoned.decode(data).epoch

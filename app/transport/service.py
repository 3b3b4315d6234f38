"""The parts of a running service, put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Literal

import anyio
import msgspec

from app import __version__
from app.chat.runtime import Runtime
from app.config import Config
from app.engine.frames import Ready
from app.engine.host import EngineHost
from app.engine.workers import EVENTS as WORKERS
from app.engine.workers import Workers
from app.errors import EverlogError
from app.events.catalogue import WorkerStarted
from app.events.envelope import thread_of
from app.events.follow import following
from app.events.logstore import LogStore
from app.events.objects import Objects
from app.events.store import StoreClosed, StoreError
from app.events.url import Database, parse_url
from app.projections.views import Views
from app.telemetry.follower import Telemetry
from app.transport import protocol as wire
from app.transport.auth import Auth, needed
from app.transport.connection import Edge
from app.transport.http import REACH_SECONDS, Info
from app.transport.metrics import MetricsPage
from app.transport.openai.active import Active
from app.transport.openai.api import Api
from app.transport.openai.batchkeeper import BatchKeeper
from app.transport.openai.library import Shelf
from app.transport.origin import Gate
from app.transport.protocol import encode
from app.transport.socket import Hub

__all__ = ["NO_WORKER", "Service"]

log = logging.getLogger(__name__)

#: Events that change what a list of threads shows.
LISTED = (
    "thread.created",
    "thread.renamed",
    "thread.deleted",
    "thread.shared",
    "message.posted",
    "message.started",
)
HINT_SECONDS = 0.3
"""Least time between two ``threads`` frames."""
PART_SECONDS = 2.0
"""Longest wait for a part before it counts as stuck."""
NO_WORKER = "no worker"
"""State of the engine where messages wait because no worker is alive."""
NOBODY = "No engine is at work. What you send is answered when one is."


class Service:
    """One running service: log, projections, engine, runtime and the edge.

    Attributes:
        url: Where it listens.
        state: ``starting``, ``ready`` or ``draining``.

    """

    def __init__(
        self,
        config: Config,
        *,
        url: str,
        store: LogStore,
        views: Views,
        runtime: Runtime,
        host: EngineHost | None,
        objects: Objects,
        name: str,
        needs_engine: bool = True,
    ) -> None:
        self.config = config
        self.url = url
        self.store = store
        self.views = views
        self.runtime = runtime
        self.host = host
        self.objects = objects
        self.name = name
        self.state: Literal["starting", "ready", "draining"] = "starting"
        self.workers = Workers(store, runtime.presence)
        self.needs_engine = needs_engine
        self._queue = False  # whether requests wait
        self.auth = Auth(store, required=needed(config.server.auth, config.server.host))
        self.calls = Active()
        self.shelf = Shelf(store)
        self.api = Api(self)
        self.batches = BatchKeeper(
            self.api, self.shelf, objects, runtime.presence, keys=lambda: self.auth.keys
        )
        self.edge = Edge(store, runtime, self.auth, self.welcome, self.standing)
        self.owners = self.edge.owners
        self.cache = self.edge.cache
        server = config.server
        self.gate = Gate(server.host, server.origins, server.cors_origins)
        self.hub = Hub(self.edge.serve, gate=self.gate, max_frame=config.server.max_frame)
        self.telemetry: Telemetry | None = None
        self.metrics = MetricsPage(self)
        self.stopping = asyncio.Event()

    @property
    def model(self) -> Ready | None:
        """The loaded model; None without an engine, and while it loads."""
        return self.host.model if self.host is not None else None

    @property
    def database(self) -> Database:
        """Where the log is."""
        return parse_url(self.config.database.url)

    @property
    def engine(self) -> str:
        """State of the engine: this process's own, or the best of the workers' of this log.

        `NO_WORKER` where messages wait for one; ``disabled`` where none is needed.
        """
        if self.host is not None:
            return self.host.state
        states = [worker.state for worker in self.workers.live.values()]
        for state in ("ready", "restarting", "starting"):
            if state in states:
                return state
        return NO_WORKER if self.needs_engine or self._queue else "disabled"

    @property
    def offered(self) -> list[Ready] | list[WorkerStarted]:
        """The models that are loaded: this process's own, or those of the workers."""
        if self.model is not None:
            return [self.model]
        return self.workers.ready

    @property
    def context(self) -> int | None:
        """Tokens that every loaded model can read; None while none is known."""
        return min((model.context for model in self.offered), default=None)

    @property
    def served(self) -> list[str]:
        """Names of the loaded models."""
        return sorted({model.model for model in self.offered})

    def stop(self) -> None:
        """Begin to drain; `serve` returns once it has."""
        self.stopping.set()

    def drain(self) -> None:
        """Take no more commands, and tell everybody."""
        self.state = "draining"
        self.batches.stop()
        self.notice("info", "draining", "The server is restarting; this page reconnects by itself.")

    def notice(self, level: Literal["info", "error"], code: str, message: str) -> None:
        """Tell every client something that is not in the log."""
        self.hub.broadcast(code, encode(wire.Notice(level=level, code=code, message=message)))

    def welcome(self, user: str) -> wire.Welcome:
        """Answer to a client's ``hello``."""
        models = [
            wire.Model(name=m.model, context=m.context, device=m.device) for m in self.offered
        ]
        return wire.Welcome(
            protocol=wire.PROTOCOL,
            incarnation=self.store.incarnation,
            version=__version__,
            user=wire.User(id=user),
            app=wire.Named(name=self.name),
            model=models[0] if models else None,
        )

    def standing(self) -> wire.Notice | None:
        """What a client that comes now should know."""
        if self.engine != NO_WORKER:
            return None
        return wire.Notice(level="error", code="engine_missing", message=NOBODY)

    def info(self) -> Info:
        """What this server is."""
        return Info(
            name=self.name,
            version=__version__,
            protocol=wire.PROTOCOL,
            incarnation=self.store.incarnation,
            database=self.database.shown,
            model=next(({"name": m.model, **msgspec.to_builtins(m)} for m in self.offered), None),
            engine=self.engine,
        )

    async def checks(self) -> dict[str, str]:
        """Readiness by part: ``ok``, or what is wrong with it. Takes `PART_SECONDS` at most."""
        log, projections = await asyncio.gather(self._log_check(), self._views_check())
        engine = self.engine
        return {
            "service": "ok" if self.state == "ready" else self.state,
            "log": log,
            "projections": projections,
            "engine": "ok" if engine in ("ready", "disabled") else engine,
        }

    async def _log_check(self) -> str:
        """Ask the log's writer for something it answers without writing."""
        trouble = self.runtime.presence.trouble
        if trouble is not None:
            return trouble
        try:
            async with asyncio.timeout(PART_SECONDS):
                await self.store.heartbeat(worker="readyz", lease=1.0)
        except TimeoutError:
            return self.runtime.presence.trouble or "the writer does not answer"
        except StoreError as error:
            return error.message
        return "ok"

    async def _views_check(self) -> str:
        try:
            async with asyncio.timeout(PART_SECONDS):
                found = await self.views.checkpoints()
        except TimeoutError:
            return "the read models do not answer"
        except EverlogError as error:
            return error.message
        return "; ".join(c.error for c in found if c.error is not None) or "ok"

    async def hint(self) -> None:
        """Tell users when their list of threads has changed; runs until cancelled."""
        async for batch in following(self.store, after=await self.store.head(), types=LISTED):
            head = batch[-1].seq
            with contextlib.suppress(EverlogError, TimeoutError):
                async with asyncio.timeout(REACH_SECONDS):
                    await self.views.reached(head)  # who fetches the list now sees the change
            threads = {thread_of(event.stream) for event in batch}
            with contextlib.suppress(StoreError):
                users = {await self.owners.of(thread) for thread in threads if thread}
                self.hub.broadcast("threads", encode(wire.Threads(head=head)), users=users)
            await asyncio.sleep(HINT_SECONDS)

    async def report_engine(self) -> None:
        """Tell clients when the engine is ready, lost, and back; runs until cancelled."""
        told = "starting" if self.host is not None else self.engine
        while True:
            await asyncio.sleep(HINT_SECONDS)
            state = self.engine
            if state == told:
                continue
            if state == "ready":
                self.notice("info", "engine_ready", "The engine is ready.")
            elif state == "restarting":
                self.notice("error", "engine_restarting", "The engine is being restarted.")
            elif state == NO_WORKER:
                self.notice("error", "engine_missing", NOBODY)
                log.warning("no engine is at work on this log; messages wait")
            told = state

    async def look(self) -> None:
        """See which workers are alive, and whether messages wait for one."""
        await self.workers.look()
        if not self.needs_engine and self.host is None:
            self._queue = bool(await self.store.leases())

    async def watch_workers(self) -> None:
        """Keep up with the workers of this log; runs until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._follow_workers)
            while True:
                await self.runtime.presence.beat()
                await self._try_look()

    async def _follow_workers(self) -> None:
        async for _ in following(self.store, after=await self.store.head(), types=WORKERS):
            await self._try_look()

    async def _try_look(self) -> None:
        try:
            await self.look()
        except StoreClosed:
            raise
        except StoreError as error:
            log.warning("cannot look for workers: %s", error)

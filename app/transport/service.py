"""The parts of a running service, put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Literal

import msgspec

from app import __version__
from app.chat.runtime import Runtime
from app.config import Config
from app.engine.frames import Ready
from app.engine.host import EngineHost
from app.errors import EverlogError
from app.events.envelope import thread_of
from app.events.logstore import LogStore
from app.events.store import StoreError
from app.events.url import database_path
from app.projections.views import Views
from app.transport import protocol as wire
from app.transport.connection import Edge
from app.transport.http import REACH_SECONDS, Info
from app.transport.origin import Gate
from app.transport.protocol import encode
from app.transport.socket import Hub

__all__ = ["Service"]

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
WRITER_SECONDS = 2.0
"""Longest wait for the log's writer before it counts as stuck."""


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
        name: str,
    ) -> None:
        self.config = config
        self.url = url
        self.store = store
        self.views = views
        self.runtime = runtime
        self.host = host
        self.name = name
        self.state: Literal["starting", "ready", "draining"] = "starting"
        self.edge = Edge(store, runtime, self.welcome)
        self.owners = self.edge.owners
        self.cache = self.edge.cache
        self.gate = Gate(config.server.host, config.server.origins)
        self.hub = Hub(self.edge.serve, gate=self.gate, max_frame=config.server.max_frame)
        self.stopping = asyncio.Event()

    @property
    def model(self) -> Ready | None:
        """The loaded model; None without an engine, and while it loads."""
        return self.host.model if self.host is not None else None

    @property
    def database(self) -> Path | None:
        """The database file; None for a log in memory."""
        return database_path(self.config.database.url)

    def stop(self) -> None:
        """Begin to drain; `serve` returns once it has."""
        self.stopping.set()

    def drain(self) -> None:
        """Take no more commands, and tell everybody."""
        self.state = "draining"
        self.notice("info", "draining", "The server is restarting; this page reconnects by itself.")

    def notice(self, level: Literal["info", "error"], code: str, message: str) -> None:
        """Tell every client something that is not in the log."""
        self.hub.broadcast(code, encode(wire.Notice(level=level, code=code, message=message)))

    def welcome(self, user: str) -> wire.Welcome:
        """Answer to a client's ``hello``."""
        ready = self.model
        model = None
        if ready is not None:
            model = wire.Model(name=ready.model, context=ready.context, device=ready.device)
        return wire.Welcome(
            protocol=wire.PROTOCOL,
            incarnation=self.store.incarnation,
            version=__version__,
            user=wire.User(id=user),
            app=wire.Named(name=self.name),
            model=model,
        )

    def info(self) -> Info:
        """What this server is."""
        return Info(
            name=self.name,
            version=__version__,
            protocol=wire.PROTOCOL,
            incarnation=self.store.incarnation,
            database=str(self.database or "memory:"),
            model=msgspec.to_builtins(self.model) if self.model else None,
            engine=self.host.state if self.host is not None else "disabled",
        )

    async def checks(self) -> dict[str, str]:
        """Readiness by part: ``ok``, or what is wrong with it."""
        engine = "ready" if self.host is None else self.host.state
        stuck = [c.error for c in await self.views.checkpoints() if c.error is not None]
        return {
            "service": "ok" if self.state == "ready" else self.state,
            "log": await self._log_check(),
            "projections": "; ".join(stuck) or "ok",
            "engine": "ok" if engine == "ready" else engine,
        }

    async def _log_check(self) -> str:
        """Ask the log's writer for something it answers without writing."""
        try:
            async with asyncio.timeout(WRITER_SECONDS):
                await self.store.heartbeat(worker="readyz", lease=1.0)
        except TimeoutError:
            return "the writer does not answer"
        except StoreError as error:
            return error.message
        return "ok"

    async def hint(self) -> None:
        """Tell users when their list of threads has changed; runs until cancelled."""
        async for batch in self.store.follow(after=await self.store.head(), types=LISTED):
            head = batch[-1].seq
            with contextlib.suppress(EverlogError, TimeoutError):
                async with asyncio.timeout(REACH_SECONDS):
                    await self.views.reached(head)  # who fetches the list now sees the change
            threads = {thread_of(event.stream) for event in batch}
            users = {await self.owners.of(thread) for thread in threads if thread}
            self.hub.broadcast("threads", encode(wire.Threads(head=head)), users=users)
            await asyncio.sleep(HINT_SECONDS)

    async def report_engine(self) -> None:
        """Tell clients when the engine is ready, lost, and back; runs until cancelled."""
        assert self.host is not None
        told = "starting"
        while True:
            await asyncio.sleep(HINT_SECONDS)
            state = self.host.state
            if state == told:
                continue
            if state == "ready":
                self.notice("info", "engine_ready", "The engine is ready.")
            elif state == "restarting":
                self.notice("error", "engine_restarting", "The engine is being restarted.")
            told = state

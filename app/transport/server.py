"""`serve`: open everything in order, serve, and come to a clean end.

The port is taken first, so that a busy one is reported before a model is loaded. The service
answers while the model loads; ``/readyz`` says so. On SIGTERM or SIGINT it drains: no more
commands, handlers and generations are checkpointed, sockets are closed with 1012 so that clients
reconnect, and the log is closed last. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import uvicorn
from anyio.abc import TaskGroup

from app.chat.app import ChatApp, builtin, load
from app.chat.errors import LoadError
from app.chat.runtime import Runtime
from app.chat.watch import watch as watch_file
from app.config import Config
from app.engine.host import EngineHost
from app.engine.hub import resolve
from app.engine.keeper import keep_queue
from app.engine.workers import presence_name
from app.errors import EverlogError, StartupError, cause
from app.events.archiver import Archiver
from app.events.open import open_log
from app.events.presence import Presence, check_name, place
from app.events.seal import Sealer
from app.events.store import EventStore
from app.events.url import parse_url
from app.projections.place import views_place
from app.projections.views import Views
from app.telemetry.follower import Telemetry
from app.telemetry.otlp import Exporter
from app.telemetry.place import Keeper
from app.transport.control import Control, announced
from app.transport.heads import Heads
from app.transport.http import application
from app.transport.lifecycle import signals
from app.transport.listen import listen, url_of
from app.transport.protocol import CloseCode
from app.transport.service import Service

__all__ = ["Service", "engine_host", "serve"]

log = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0
"""Time for sockets to close, after ``server.drain_seconds`` for handlers and the engine."""


async def serve(
    config: Config,
    *,
    file: Path | None = None,
    watch: bool = False,
    on_ready: Callable[[Service], None] | None = None,
) -> None:
    """Run the service until a signal, or `Service.stop`.

    Args:
        config: All settings.
        file: The chat author's file; None runs the built-in chat.
        watch: Reload ``file`` when it is saved.
        on_ready: Called once, when the service is ready to answer.

    Raises:
        StartupError: It cannot start.

    """
    with contextlib.closing(listen(config.server)) as listener:
        async with _open(config, file, listener) as service:
            with signals(service.stopping.is_set, service.stop):
                await _run(service, listener, file if watch else None, on_ready)


@contextlib.asynccontextmanager
async def _open(
    config: Config, file: Path | None, listener: socket.socket
) -> AsyncIterator[Service]:
    """Open the log and the projections, and put a service together."""
    database = parse_url(config.database.url)
    host, port = listener.getsockname()[:2]
    node = config.server.node or f"{socket.gethostname()}:{port}"
    here = place(f"{host}:{port}")
    async with (
        open_log(config) as (store, objects),
        Views.open(store, views_place(database)) as views,
    ):
        lease = config.server.lease_seconds
        presence = Presence(store, check_name(node, "server.node"), lease=lease, place=here)
        service = Service(
            config,
            url=url_of(listener),
            store=store,
            views=views,
            runtime=Runtime(
                store,
                ChatApp(config.chat.name),
                presence=presence,
                views=views,
                stream=config.stream,
                chat=config.chat,
                server=config.server,
            ),
            objects=objects,
            host=engine_host(config, store, node, here) if config.engine.enabled else None,
            name=config.chat.name,
            needs_engine=file is None,
        )
        app = _app(config, file, service)
        await service.runtime.reload(app)
        service.name = app.name if file else config.chat.name
        yield service


def engine_host(config: Config, store: EventStore, worker: str, where: str) -> EngineHost:
    """Return the engine of a process that is called ``worker``; see `app.events.presence.place`."""
    presence = Presence(
        store, presence_name(worker), lease=config.server.lease_seconds, place=where
    )
    return EngineHost(
        store,
        config.engine,
        worker=worker,
        stream=config.stream,
        resolve=_resolve,
        presence=presence,
    )


def _app(config: Config, file: Path | None, service: Service) -> ChatApp:
    """Load the chat author's file, or make the built-in chat.

    Raises:
        StartupError: The file cannot be used.

    """
    if file is None:
        return builtin(config.chat, context=lambda: service.context)
    try:
        return load(file)
    except LoadError as error:
        raise StartupError(error.message, hint=error.hint) from error


def _resolve(model: str) -> str:
    """Path of a model's files, by name or as given."""
    return str(resolve(model))


# ------------------------------------------------------------------------------ lifecycle


async def _run(
    service: Service,
    listener: socket.socket,
    watched: Path | None,
    on_ready: Callable[[Service], None] | None,
) -> None:
    """Start the parts, wait for the end, and take them down in order."""
    web = _Web(service)
    try:
        await service.auth.load()
        control = Control(url=service.url, token=service.auth.control)
        with announced(service.database, control):
            await _serve(service, listener, web, watched, on_ready)
    except BaseExceptionGroup as errors:
        raise cause(errors) from None
    finally:
        web.abort()


async def _serve(
    service: Service,
    listener: socket.socket,
    web: _Web,
    watched: Path | None,
    on_ready: Callable[[Service], None] | None,
) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(service.auth.run)
        group.start_soon(web.serve, [listener])
        await _start(service, group, watched)
        if not service.stopping.is_set():
            service.state = "ready"
            if on_ready is not None:
                on_ready(service)
        await service.stopping.wait()
        await _drain(service)
        await web.stop()
        group.cancel_scope.cancel()


async def _start(service: Service, group: TaskGroup, watched: Path | None) -> None:
    """Start everything behind the edge; returns when it is ready, or when the end has come."""
    every, seconds = service.config.log.seal_every, service.config.log.seal_seconds
    group.start_soon(Sealer(service.store, every=every, seconds=seconds).run)
    group.start_soon(Archiver(service.store, service.config.archive).run)
    if service.config.telemetry.endpoint:
        service.telemetry = _telemetry(service)
        await group.start(service.telemetry.run)
    group.start_soon(service.hint)
    await group.start(service.runtime.run)
    group.start_soon(service.watch_workers)
    group.start_soon(service.batches.run)
    group.start_soon(service.report_engine)
    if watched is not None:
        group.start_soon(_watch, service, watched)
    if service.host is None:
        lease = service.config.engine.lease_seconds
        group.start_soon(partial(keep_queue, service.store, every=lease / 3))
        return await service.look()
    settled = asyncio.Event()  # the model is loaded, or will not be waited for

    async def give_up() -> None:
        await service.stopping.wait()
        settled.set()

    group.start_soon(partial(service.host.run, ready=settled.set))
    group.start_soon(give_up)
    await settled.wait()
    return None


def _telemetry(service: Service) -> Telemetry:
    """What exports the spans of the log.

    Raises:
        StartupError: It is not installed, or its endpoint is no URL.

    """
    config = service.config.telemetry
    exporter = Exporter(config.endpoint, node=service.runtime.presence.name)
    keeper = Keeper(views_place(service.database))
    return Telemetry(service.store, keeper, exporter, content=config.content)


async def _drain(service: Service) -> None:
    """Checkpoint what runs, then send the clients away."""
    seconds = service.config.server.drain_seconds
    service.drain()
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(
                service.runtime.drain(seconds / 2), service.calls.drain(seconds / 2)
            )
            if service.host is not None:
                await service.host.drain()
    except TimeoutError:
        log.warning("Not everything ended within server.drain_seconds; the log has what it has")
    except EverlogError as error:
        log.error("Draining failed: %s", error)
    with contextlib.suppress(EverlogError):  # else the others wait for the lease
        await service.runtime.presence.leave()
    await service.hub.close(CloseCode.RESTART, "restart", timeout=CLOSE_SECONDS)


async def _watch(service: Service, file: Path) -> None:
    """Reload the chat author's file when it is saved, and tell the clients."""

    async def reloaded(app: ChatApp) -> None:
        await service.runtime.reload(app)
        log.info("%s was reloaded", file.name)
        service.notice("info", "reloaded", f"{file.name} was reloaded.")

    async def failed(error: LoadError) -> None:
        log.error("%s", "\n".join(filter(None, (error.message, error.hint))))
        service.notice("error", "reload_failed", error.message)

    await watch_file(file, reloaded=reloaded, failed=failed)


class _Web(uvicorn.Server):
    """uvicorn without its signal handling: the service drains first, then ends it."""

    def __init__(self, service: Service) -> None:
        super().__init__(
            uvicorn.Config(
                application(service, service.gate),
                http=Heads,
                ws=service.hub.protocol(),
                lifespan="off",
                access_log=False,
                log_config=None,
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._ended = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `stop`."""
        try:
            await super().serve(sockets)
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Finish the requests under way, then end."""
        self.should_exit = True
        await self._ended.wait()

    def abort(self) -> None:
        """Cut off what a `stop` has not ended."""
        for server in getattr(self, "servers", []):
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()

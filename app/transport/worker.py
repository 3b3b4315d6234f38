"""`work`: an engine host on a log, until a signal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

from app.config import Config
from app.engine.host import EngineHost
from app.errors import cause
from app.events.open import open_log
from app.transport.lifecycle import signals
from app.transport.server import engine_host

__all__ = ["work"]


async def work(
    config: Config,
    name: str,
    where: str = "",
    *,
    on_ready: Callable[[EngineHost], None] | None = None,
) -> None:
    """Run an engine host until SIGTERM or SIGINT, then give back what it holds.

    Args:
        config: All settings.
        name: Name of the worker, its own in this log.
        where: See `app.events.presence.place`.
        on_ready: Called once, when it takes requests.

    Raises:
        StartupError: It cannot start, or another worker has this name.

    """
    stop = asyncio.Event()
    async with open_log(config) as (store, _):
        host = engine_host(config, store, name, where)

        async def end() -> None:
            await stop.wait()
            with anyio.move_on_after(config.server.drain_seconds):
                await host.drain()
            group.cancel_scope.cancel()

        def ready() -> None:
            if on_ready is not None:
                on_ready(host)

        with signals(stop.is_set, stop.set):
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(end)
                    await host.run(ready=ready)
                    group.cancel_scope.cancel()
            except BaseExceptionGroup as errors:
                raise cause(errors) from None

"""A runtime over a real store, and a client's view of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from app.chat.app import ChatApp
from app.chat.commands import Ack, PostCommand, StopCommand
from app.chat.runtime import Runtime
from app.config import ChatConfig, EngineConfig, StreamConfig
from app.engine import hub
from app.events.codec import decode
from app.events.envelope import Event, thread_stream
from app.events.ids import uuid7
from app.events.open import open_store
from app.events.presence import LEASE, Presence
from app.events.store import EventStore
from app.projections.state import ThreadState, load

USER = "local"


class Chat:
    """One client of one runtime."""

    def __init__(self, store: EventStore, runtime: Runtime) -> None:
        self.store = store
        self.runtime = runtime

    async def post(self, thread: str, content: str = "hi", **fields: Any) -> Ack:
        fields = {"id": uuid7(), **fields}
        command = PostCommand(thread=thread, content=content, **fields)
        return await self.runtime.post(command, USER)

    async def stop(self, thread: str, *, id: str | None = None) -> Ack:
        return await self.runtime.stop(StopCommand(id=id or uuid7(), thread=thread), USER)

    async def state(self, thread: str) -> ThreadState:
        state = await load(self.store, thread)
        assert state is not None
        return state

    async def until(
        self, thread: str, wanted: Callable[[ThreadState], object], *, seconds: float = 10
    ) -> ThreadState:
        """Wait until the thread's state in the log is as wanted."""
        async with asyncio.timeout(seconds):
            while True:
                state = await load(self.store, thread)
                if state is not None and wanted(state):
                    return state
                after = state.version if state is not None else 0
                await self.store.wait(after=after, stream=thread_stream(thread))

    async def settled(self, thread: str, *, runs: int = 1, seconds: float = 10) -> ThreadState:
        """Wait until so many runs of the thread have ended, and none is open."""
        return await self.until(
            thread,
            lambda s: len(s.runs) >= runs and all(run.ended is not None for run in s.runs),
            seconds=seconds,
        )

    async def ask(self, thread: str, content: str = "hi") -> ThreadState:
        """Post, and wait for the end of the run."""
        before = len((await self.state(thread)).runs) if await self.version(thread) else 0
        await self.post(thread, content)
        return await self.settled(thread, runs=before + 1)

    async def version(self, thread: str) -> int:
        return await self.store.stream_version(thread_stream(thread))

    async def events(self, thread: str) -> list[Event]:
        return [event async for event in self.store.read(stream=thread_stream(thread))]

    async def types(self, thread: str) -> list[str]:
        return [event.type for event in await self.events(thread)]

    async def payloads(self, thread: str, type: str) -> list[Any]:
        return [decode(event) for event in await self.events(thread) if event.type == type]


@contextlib.asynccontextmanager
async def serving(
    store: EventStore,
    app: ChatApp,
    *,
    node: str = "test",
    lease: float = LEASE,
    **options: Any,
) -> AsyncIterator[Chat]:
    """A runtime that is cancelled at the end, without a drain: as good as a crash."""
    options = {"stream": StreamConfig(), "chat": ChatConfig(), **options}
    # Like a port: who serves under this name knows that nobody else does.
    options.setdefault("presence", Presence(store, node, place=node, lease=lease))
    runtime = Runtime(store, app, **options)
    ready = asyncio.Event()
    task = asyncio.create_task(runtime.run(ready=ready.set))
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        yield Chat(store, runtime)
    finally:
        waiting.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def app_of(**hooks: Callable[..., Any]) -> ChatApp:
    """An app made of functions of a test."""
    app = ChatApp("test")
    for hook, function in hooks.items():
        app.register(hook, function)
    return app


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EventStore]:
    """A log: every test runs on both kinds."""
    url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path / 'log.db'}"
    async with open_store(url, synchronous="normal") as opened:
        yield opened


@pytest.fixture
def thread() -> str:
    return uuid7()


@pytest.fixture(scope="session")
def model() -> str:
    """Path of the default model, fetched once into the user's cache."""
    return str(hub.resolve(EngineConfig().model))

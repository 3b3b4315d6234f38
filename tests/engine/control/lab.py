"""A log with an engine host on it, and requests to it. Used by the tests beside it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from app.config import EngineConfig, StreamConfig
from app.engine.frames import Ready
from app.engine.host import EngineHost
from app.events import codec
from app.events.catalogue import (
    ChatMessage,
    RequestCancelled,
    RequestFailed,
    RequestFinished,
    RequestQueued,
    SamplingParams,
    TokensGenerated,
)
from app.events.envelope import Event, request_stream
from app.events.ids import uuid7
from app.events.lifecycle import TERMINAL, TRANSITIONS
from app.events.store import Append, Appended, EventStore

PATIENCE = 90.0
"""Seconds after which a test gives up waiting; the machine may be busy with other things."""

STORY = "Tell me a long story about a dog and a boat."

READY = Ready(
    model="m",
    weights="w",
    architecture="a",
    device="cpu",
    dtype="float32",
    threads=1,
    context=100,
    blocks=8,
    block_size=16,
    parameters=1,
    load_time=0.0,
    eos=[0],
)
"""What a small core loaded, where none runs."""


class Result:
    """What the log says about a request that ended."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.types = [event.type for event in events]
        payloads = [codec.decode(event) for event in events]
        self.batches = [p for p in payloads if isinstance(p, TokensGenerated)]
        self.tokens = [token for batch in self.batches for token in batch.tokens]
        self.text = "".join(batch.text for batch in self.batches)
        self.last = payloads[-1]

    @property
    def finished(self) -> RequestFinished:
        assert isinstance(self.last, RequestFinished), self.last
        return self.last

    @property
    def failed(self) -> RequestFailed:
        assert isinstance(self.last, RequestFailed), self.last
        return self.last

    def check(self) -> Result:
        """What holds for every request, however it went."""
        state: str | None = None
        for type in self.types:
            state = TRANSITIONS[type].get(state)
            assert state is not None, self.types
        assert [batch.batch for batch in self.batches] == list(range(len(self.batches)))
        index = 0
        for batch in self.batches:
            assert batch.index == index
            assert len(batch.offsets) == len(batch.tokens)
            assert batch.offsets == sorted(batch.offsets)
            index += len(batch.tokens)
        if isinstance(self.last, RequestFinished):
            assert self.last.text == self.text
            assert self.last.batches == len(self.batches)
            assert self.last.digest == sha256(self.text.encode()).hexdigest()
            assert self.last.usage.completion_tokens == len(self.tokens)
        return self


class Lab:
    """Asks a store whose requests some host serves."""

    def __init__(self, store: EventStore, host: EngineHost | None = None) -> None:
        self.store = store
        self.host = host

    async def ask(self, prompt: str | list[int] | None = STORY, **kwargs: Any) -> str:
        """Queue a request; other arguments are fields of ``request.queued`` or of the params."""
        fields = {
            name: kwargs.pop(name)
            for name in (
                *("priority", "deadline", "model", "messages", "text", "salt", "embed"),
                "tenant",
            )
            if name in kwargs
        }
        if isinstance(prompt, str) and not {"text", "messages"} & fields.keys():
            fields["messages"] = [ChatMessage(role="user", content=prompt)]
        elif isinstance(prompt, list):
            fields["prompt"] = prompt
        request = uuid7()
        params = SamplingParams(**{"max_tokens": 16, "seed": 7, **kwargs})
        payload = RequestQueued(request=request, params=params, **fields)
        event = codec.new(payload, request=request, run="run-1")
        outcome = await self.store.append(Append(stream=request_stream(request), events=[event]))
        assert isinstance(outcome, Appended)
        return request

    async def cancel(self, request: str) -> None:
        event = codec.new(RequestCancelled(request=request), request=request)
        outcome = await self.store.append(Append(stream=request_stream(request), events=[event]))
        assert isinstance(outcome, Appended)

    async def until(self, request: str, enough: Callable[[list[str]], bool]) -> list[Event]:
        """Events of a request, once their types are enough."""
        seen: list[Event] = []
        async with asyncio.timeout(PATIENCE):
            async for events in self.store.follow(stream=request_stream(request)):
                for event in events:
                    seen.append(event)
                    if enough([event.type for event in seen]):
                        return seen
        raise AssertionError

    async def streaming(self, request: str, batches: int = 1) -> list[Event]:
        """Wait for some batches of tokens."""
        return await self.until(request, lambda t: t.count("tokens.generated") >= batches)

    async def result(self, request: str) -> Result:
        """Wait for the end of a request."""
        return Result(await self.until(request, ended)).check()

    async def answer(self, prompt: str | list[int] | None = STORY, **kwargs: Any) -> Result:
        """Ask and wait."""
        return await self.result(await self.ask(prompt, **kwargs))

    async def answers(self, *asked: dict[str, Any]) -> list[Result]:
        """Ask several at once and wait for all."""
        requests = [await self.ask(**kwargs) for kwargs in asked]
        return [await self.result(request) for request in requests]

    async def kill_core(self) -> None:
        """SIGKILL the core of the host."""
        os.kill(await self.core_pid(), signal.SIGKILL)

    async def core_pid(self) -> int:
        """Process id of the core that was started last."""
        events = [e async for e in self.store.read(types=("worker.started",))]
        return int(codec.decode(events[-1]).pid)  # type: ignore[union-attr]


def ended(types: list[str]) -> bool:
    state = None
    for type in types:
        state = TRANSITIONS[type].get(state)
    return state in TERMINAL


@asynccontextmanager
async def serving(
    store: EventStore,
    model: str,
    *,
    worker: str = "w1",
    stream: StreamConfig | None = None,
    **config: Any,
) -> AsyncIterator[Lab]:
    """Run a host on a store; it is cancelled at the end."""
    host = EngineHost(
        store,
        EngineConfig(**{"model": model, "threads": 1, **config}),
        worker=worker,
        stream=stream or StreamConfig(),
    )
    ready = asyncio.Event()
    task = asyncio.create_task(host.run(ready=ready.set))
    waiting: asyncio.Task[Any] = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            task.result()
        yield Lab(store, host)
    finally:
        waiting.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def gone(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    async with asyncio.timeout(PATIENCE):
        while alive(pid):  # noqa: ASYNC110 - nothing to wait on: it is not ours
            await asyncio.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

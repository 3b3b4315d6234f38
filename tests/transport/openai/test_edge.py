"""The API of an edge without an engine: the test is the worker, and writes what one would."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.config import ApiConfig
from app.events.catalogue import (
    Payload,
    RequestCancelled,
    RequestFailed,
    RequestFinished,
    RequestQueued,
    RequestStarted,
    Timings,
    TokensGenerated,
    Usage,
)
from app.events.codec import decode, new
from app.events.store import Append, Appended, Claimed, Fence
from app.transport.openai import reply
from app.transport.server import Service
from tests.support.server import ROOT
from tests.transport.serving import serving

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the service."""
    async with httpx2.AsyncClient(base_url=service.url, timeout=10) as client:
        yield client


class Worker:
    """Answers requests as an engine host does."""

    def __init__(self, service: Service) -> None:
        self.store = service.store

    async def claim(self) -> Claimed:
        """Wait for a request and claim it."""
        async with asyncio.timeout(5):
            while True:
                found = await self.store.claim(worker="test", limit=1, lease=30, models=["mine"])
                if found:
                    return found[0]
                await asyncio.sleep(0.01)

    async def write(self, claim: Claimed, *payloads: Payload) -> None:
        """Append what happens to a request."""
        outcome = await self.store.append(
            Append(
                stream=claim.stream,
                events=[new(p, actor="engine:test", request=claim.request) for p in payloads],
                fence=Fence(claim.request, claim.epoch),
            )
        )
        assert isinstance(outcome, Appended), outcome

    async def start(self, claim: Claimed) -> None:
        """Give it a slot."""
        await self.write(
            claim,
            RequestStarted(
                request=claim.request, epoch=claim.epoch, model="m", weights="w", prompt_tokens=3
            ),
        )

    async def say(self, claim: Claimed, text: str, batch: int = 0) -> None:
        """Generate a token."""
        await self.write(
            claim,
            TokensGenerated(
                request=claim.request,
                epoch=claim.epoch,
                batch=batch,
                index=batch,
                tokens=[1],
                text=text,
            ),
        )

    async def finish(self, claim: Claimed, text: str) -> None:
        """End it well."""
        await self.write(
            claim,
            RequestFinished(
                request=claim.request,
                epoch=claim.epoch,
                reason="stop",
                text=text,
                usage=Usage(prompt_tokens=3, completion_tokens=1),
                timings=Timings(),
                batches=1,
                digest="",
            ),
        )


async def types(service: Service, stream: str) -> list[str]:
    """Types of the events of a stream."""
    return [event.type for event in await service.store.fetch(stream=stream)]


async def settled(service: Service, stream: str, last: str) -> list[str]:
    """Types of a stream's events, once the last is this one."""
    found: list[str] = []
    async with asyncio.timeout(5):
        while not found or found[-1] != last:
            await service.store.wait(after=len(found), stream=stream)
            found = await types(service, stream)
    return found


async def test_a_request_waits_for_any_worker(service: Service, client: httpx2.AsyncClient) -> None:
    asking = asyncio.create_task(
        client.post("/v1/chat/completions", json={**CHAT, "model": "mine", "user": "u", "x": 1})
    )
    worker = Worker(service)
    claim = await worker.claim()
    assert claim.stream == f"request/{claim.request}"
    assert claim.queued.actor == "user:local"
    queued = decode(claim.queued)
    assert isinstance(queued, RequestQueued)
    assert queued.model == "mine"
    assert queued.deadline is not None
    assert queued.metadata == {"endpoint": "chat.completions", "user": "u"}
    await worker.start(claim)
    await worker.say(claim, "Hi")
    await worker.finish(claim, "Hi")
    answer = await asking
    assert answer.status_code == 200
    assert answer.headers["x-everlog-ignored"] == "x"
    assert answer.headers["x-request-id"] == claim.request
    body = answer.json()
    assert (body["model"], body["choices"][0]["message"]["content"]) == ("mine", "Hi")


class Stream:
    """A stream that is read in the background; ``head`` and frames as they come."""

    def __init__(self, client: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> None:
        self._got: asyncio.Queue[Any] = asyncio.Queue()
        self._task = asyncio.create_task(self._read(client, path, body))

    async def _read(self, client: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> None:
        async with client.stream("POST", path, json={**body, "stream": True}) as response:
            self._got.put_nowait(response)
            async for line in response.aiter_lines():
                if line:
                    self._got.put_nowait(line)
        self._got.put_nowait(None)

    async def next(self, timeout: float = 5) -> Any:
        """The response, then its lines, then None."""
        async with asyncio.timeout(timeout):
            return await self._got.get()

    async def leave(self) -> None:
        """Close the connection."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


async def test_frames_come_as_they_are_committed(
    service: Service, client: httpx2.AsyncClient
) -> None:
    worker = Worker(service)
    stream = Stream(client, "/v1/chat/completions", CHAT)
    claim = await worker.claim()
    with pytest.raises(TimeoutError):  # the head waits for the first sign of the engine
        await stream.next(0.1)
    await worker.start(claim)
    head = await stream.next()
    assert head.status_code == 200
    assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert head.headers["cache-control"] == "no-cache"
    assert head.headers["x-accel-buffering"] == "no"
    assert '"role":"assistant"' in await stream.next()
    await worker.say(claim, "Hi")
    assert '"content":"Hi"' in await stream.next()
    await worker.finish(claim, "Hi")
    assert '"finish_reason":"stop"' in await stream.next()
    assert await stream.next() == "data: [DONE]"
    assert await stream.next() is None


async def test_a_silent_stream_is_kept_alive(
    service: Service, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply, "PING_SECONDS", 0.1)
    worker = Worker(service)
    stream = Stream(client, "/v1/chat/completions", CHAT)
    assert (await stream.next()).status_code == 200  # it waits in the queue all the while
    assert '"role":"assistant"' in await stream.next()
    assert await stream.next() == ": ping"
    assert await stream.next() == ": ping"
    claim = await worker.claim()
    await worker.start(claim)
    await worker.finish(claim, "")
    while (line := await stream.next()) is not None:
        last = line
    assert last == "data: [DONE]"


@pytest.mark.parametrize("stream", [True, False])
async def test_who_goes_cancels(service: Service, client: httpx2.AsyncClient, stream: bool) -> None:
    worker = Worker(service)
    body = {**CHAT, "stream": stream}
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=body))
    claim = await worker.claim()
    await worker.start(claim)
    await worker.say(claim, "Hi")
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    await settled(service, claim.stream, "request.cancelled")
    (*_, last) = await service.store.fetch(stream=claim.stream)
    assert last.actor == "user:local"
    assert json.loads(last.data)["text"] == "Hi"


async def test_who_goes_from_the_queue_cancels_all(
    service: Service, client: httpx2.AsyncClient
) -> None:
    stream = Stream(client, "/v1/chat/completions", {**CHAT, "n": 3})
    worker = Worker(service)
    streams = [(await worker.claim()).stream for _ in range(3)]
    await stream.leave()
    for each in streams:
        await settled(service, each, "request.cancelled")


async def test_somebody_else_cancels(service: Service, client: httpx2.AsyncClient) -> None:
    worker = Worker(service)
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
    claim = await worker.claim()
    cancelled = new(RequestCancelled(request=claim.request), request=claim.request)
    await service.store.append(Append(stream=claim.stream, events=[cancelled]))
    answer = await asking
    assert (answer.status_code, answer.json()["error"]["code"]) == (499, "cancelled")


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("invalid", 400, "invalid_value"),
        ("context", 400, "context_length_exceeded"),
        ("timeout", 504, "timeout"),
        ("error", 500, "error"),
    ],
)
async def test_a_request_that_fails_before_its_first_token(
    service: Service, client: httpx2.AsyncClient, code: str, status: int, said: str
) -> None:
    for stream in (True, False):
        body = {**CHAT, "stream": stream}
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        worker = Worker(service)
        claim = await worker.claim()
        failed = RequestFailed(request=claim.request, code=code, message="so it is")
        await worker.write(claim, failed)
        answer = await asking
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["message"]) == (status, said, "so it is")


async def test_a_request_that_fails_in_mid_stream(
    service: Service, client: httpx2.AsyncClient
) -> None:
    worker = Worker(service)
    stream = Stream(client, "/v1/completions", {"prompt": "Once"})
    claim = await worker.claim()
    await worker.start(claim)
    await worker.say(claim, "Hi")
    await worker.write(claim, RequestFailed(request=claim.request, code="error", message="no more"))
    assert (await stream.next()).status_code == 200
    assert '"text":"Hi"' in await stream.next()
    error = json.loads((await stream.next()).removeprefix("data: "))["error"]
    assert (error["type"], error["message"]) == ("server_error", "no more")
    assert await stream.next() is None


async def test_one_choice_that_fails_ends_all(service: Service, client: httpx2.AsyncClient) -> None:
    asking = asyncio.create_task(client.post("/v1/chat/completions", json={**CHAT, "n": 2}))
    worker = Worker(service)
    first, second = await worker.claim(), await worker.claim()
    await worker.write(first, RequestFailed(request=first.request, code="error", message="x"))
    assert (await asking).status_code == 500
    await settled(service, second.stream, "request.cancelled")


async def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, api=ApiConfig(timeout_seconds=0.3)) as service,
        httpx2.AsyncClient(base_url=service.url, timeout=20) as client,
    ):
        answer = await client.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


async def test_a_server_that_ends_says_so(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as service,
        httpx2.AsyncClient(base_url=service.url, timeout=20) as client,
    ):
        worker = Worker(service)
        stream = Stream(client, "/v1/chat/completions", CHAT)
        claim = await worker.claim()
        await worker.start(claim)
        assert (await stream.next()).status_code == 200
        assert '"role"' in await stream.next()
        service.stop()
        error = json.loads((await stream.next()).removeprefix("data: "))["error"]
        assert error["code"] == "shutting_down"
        assert await stream.next() is None
        await settled(service, claim.stream, "request.cancelled")


async def test_models_while_there_is_none(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/v1/models")).json() == {"object": "list", "data": []}
    missing = await client.get("/v1/models/x")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_tokens_without_the_files_of_the_model(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/tokenize", json={"prompt": "x", "model": "another"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "no_tokenizer")
    asked = {**CHAT, "logprobs": True, "model": "another"}
    assert (await client.post("/v1/chat/completions", json=asked)).status_code == 501


async def test_other_urls_and_methods(client: httpx2.AsyncClient) -> None:
    for answer in (await client.get("/v1/chat/completions"), await client.post("/v1/x")):
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "not_found_error"
    for path in ("/health", "/ping"):
        assert (await client.get(path)).json()["status"] == "ready"
    assert "version" in (await client.get("/version")).json()


async def test_pages_of_other_sites_may_not_ask(client: httpx2.AsyncClient) -> None:
    headers = {"origin": "https://evil.example", "content-type": "text/plain"}
    answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 403


@pytest.mark.model
def test_a_tokenizer_comes_without_torch() -> None:
    code = (
        "import sys; from app.transport.openai.api import Tokenizer;"
        "from app.engine.hub import find;"
        "Tokenizer.open(find('smollm2-135m-instruct')); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

"""Limits on what waits: whoever asks too much is told so, and when to try again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.events.catalogue import RequestQueued, SamplingParams
from app.events.codec import new
from app.events.envelope import request_stream
from app.events.ids import uuid7
from app.events.store import Append, EventStore
from app.transport import keys
from tests.transport.openai.test_edge import CHAT
from tests.transport.serving import serving

BODIES: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {**CHAT, "stream": True}),
    ("completions", {"prompt": "Hello"}),
    ("responses", {"input": "Hello", "background": True}),
    ("embeddings", {"input": ["Hello"]}),
]


async def fill(store: EventStore, count: int, actor: str) -> None:
    for _ in range(count):
        queued = RequestQueued(request=uuid7(), params=SamplingParams(seed=1), text="x")
        event = new(queued, actor=actor, request=queued.request)
        await store.append(Append(stream=request_stream(queued.request), events=[event]))


@pytest.mark.parametrize(("path", "body"), BODIES, ids=lambda each: str(each)[:10])
async def test_too_many_of_ones_own_or_in_all(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    async with (
        serving(tmp_path, max_queue=5, max_queue_tenant=2) as service,
        httpx2.AsyncClient(base_url=f"{service.url}/v1", timeout=10) as client,
    ):
        await fill(service.store, 2, "user:local")
        head = await service.store.head()
        own = await client.post(path, json=body)
        assert (own.status_code, own.headers["retry-after"]) == (429, "5")
        error = own.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_limit_exceeded")
        assert error["message"].startswith("2 of your requests wait")
        assert await service.store.head() == head
        await service.store.claim(worker="w", limit=1, lease=9)  # it waits no more
        await fill(service.store, 4, "key:other")
        everybody = await client.post(path, json=body)
        assert (everybody.status_code, everybody.headers["retry-after"]) == (503, "5")
        error = everybody.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "queue_full")


async def test_a_limit_holds_whatever_comes_at_once(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, max_queue_tenant=3) as service,
        httpx2.AsyncClient(base_url=f"{service.url}/v1", timeout=10) as client,
    ):
        body = {"input": "Hello", "background": True}
        found = await asyncio.gather(*(client.post("responses", json=body) for _ in range(12)))
        codes = [each.status_code for each in found]
        assert 1 <= codes.count(200) <= 3 and codes.count(200) + codes.count(429) == 12
        for _ in range(3):
            await client.post("responses", json=body)
        assert await service.store.waiting("user:local") == (3, 3)


@pytest.mark.parametrize(("path", "body"), BODIES, ids=lambda each: str(each)[:10])
async def test_who_may_go_before_others(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    async with (
        serving(tmp_path) as service,
        httpx2.AsyncClient(base_url=f"{service.url}/v1", timeout=10) as client,
    ):
        made = await keys.create(service.store, "ann", scopes=["api"])
        await asyncio.sleep(0.1)  # until the server knows it
        client.headers["authorization"] = f"Bearer {made.secret}"
        head = await service.store.head()
        refused = await client.post(path, json={**body, "priority": -1})
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (403, "priority")
        assert "scope admin" in error["message"]
        assert await service.store.head() == head

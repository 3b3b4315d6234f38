"""The whole path with the real model: socket, log, engine and back."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import aclosing
from pathlib import Path

import pytest

from app.events.ids import uuid7
from app.projections import state as projection
from app.transport.client import Client
from app.transport.items import to_event
from app.transport.protocol import Item, Notice
from tests.support.server import Server
from tests.transport.serving import http

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

QUESTION = "What is the capital of France?"
STORY = "Tell me a story about a lighthouse."


async def answer(client: Client, thread: str, *, cuts: int = 0) -> projection.ThreadState:
    """Follow a thread until its requests and runs have ended, breaking the connection meanwhile."""
    state = projection.empty(thread)
    async with aclosing(client.follow(thread)) as items:
        async for item in items:
            if not isinstance(item, Item):
                continue
            assert item.v == state.version + 1
            projection.apply(state, to_event(item, thread))
            if item.type == "tokens.generated" and cuts and item.v % 3 == 0:
                cuts -= 1
                client.cut()
            if state.runs and all(run.ended for run in state.runs):
                return state
    raise AssertionError


async def test_an_answer_survives_cuts_and_a_restart_in_the_middle(tmp_path: Path) -> None:
    # In bfloat16 a sampled token may turn on the rounding of a recomputed cache.
    server = Server(tmp_path / "log.db", env={"EVERLOG_ENGINE__DTYPE": "float32"})
    await asyncio.to_thread(server.start, ready=False)
    try:
        notices: list[Notice] = []
        async with Client(server.url, patience=120, on_notice=notices.append) as client:
            assert client.welcome.model is None
            # The model may still be loading: the question is taken all the same.
            paris = uuid7()
            await client.post(paris, QUESTION)
            state = await answer(client, paris, cuts=3)
            assert "Paris" in state.messages[-1].content
            assert state.messages[-1].status == "done"
            assert (await http(f"{server.url}/readyz")).status == 200

            whole, broken = uuid7(), uuid7()
            params = {"temperature": 0.7, "seed": 5, "max_tokens": 16}
            await client.post(whole, STORY, params=params)
            expected = await answer(client, whole)
            # Who was cut off at that moment hears it from the next welcome.
            heard = "engine_ready" in [notice.code for notice in notices]
            assert heard or client.welcome.model is not None
            await client.post(broken, STORY, params=params)
            async with aclosing(client.follow(broken)) as items:
                seen = [item async for item in first_tokens(items, 3)]
            assert await asyncio.to_thread(server.kill, signal.SIGTERM) == 0, server.log()
            await asyncio.to_thread(server.start, timeout=120)
            state = await answer(client, broken, cuts=2)
            assert state.messages[-1].content == expected.messages[-1].content
            assert state.requests[-1].tokens == expected.requests[-1].tokens
            assert state.requests[-1].epoch > 1
            assert len(seen) == 3
            page = (await http(f"{server.url}/metrics?log=1")).body.decode()
            generated = sum(float(n) for n in re.findall(r"generation_tokens_total{.*} (.*)", page))
            whole_story = len(state.requests[-1].tokens) * 2
            assert whole_story < generated < whole_story + 64, "each token once, the restart or not"
            assert re.search(r"request_success_total{.*stop.*} 1.0", page)
            assert re.search(r"time_to_first_token_seconds_count{.*} 3.0", page)
            assert re.search(r"cache_config_info{.*} 1.0", page)
    finally:
        if server.process is not None and server.process.poll() is None:
            await asyncio.to_thread(server.kill)


async def first_tokens(items, count):  # type: ignore[no-untyped-def]
    """The first few token events of a thread."""
    async for item in items:
        if isinstance(item, Item) and item.type == "tokens.generated":
            yield item
            count -= 1
            if not count:
                return

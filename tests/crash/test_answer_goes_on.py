"""Killing the core or the server in mid-answer does not change the answer, with the real model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from app.events.ids import uuid7
from app.transport.client import Client
from tests.crash.checks import check_log
from tests.crash.watcher import TERMINAL, Watcher
from tests.support.server import Server, running

pytestmark = [pytest.mark.crash, pytest.mark.model, pytest.mark.timeout(300)]

PROMPT = "Explain in a few sentences how a sailing boat can sail against the wind."
GREEDY: dict[str, Any] = {"max_tokens": 160}
SEEDED: dict[str, Any] = {"max_tokens": 160, "temperature": 0.9, "top_p": 0.95, "seed": 20}
ENDED = ("request.finished", "request.failed", "request.cancelled")

Disturb = Callable[[Server, list[Watcher]], Awaitable[None]]


async def answers(server: Server, disturb: Disturb | None) -> tuple[list[str], list[Watcher]]:
    """Ask greedily and seeded at once; returns both texts as `request.finished` has them."""
    async with Client(server.url, patience=120) as client:
        watchers = [Watcher(client, uuid7()) for _ in (GREEDY, SEEDED)]
        followers = [asyncio.create_task(watcher.follow()) for watcher in watchers]
        for watcher, params in zip(watchers, (GREEDY, SEEDED), strict=True):
            watcher.acks.append(await client.post(watcher.thread, PROMPT, params=params))
        if disturb is not None:
            await disturb(server, watchers)
        for watcher in watchers:
            await watcher.until(1, *ENDED)
            await watcher.until(1, *TERMINAL)
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
    return [finished(watcher) for watcher in watchers], watchers


def finished(watcher: Watcher) -> str:
    """The whole text, after checking that the token batches joined give the same."""
    last = next(item for item in watcher.items if item.type in ENDED)
    assert last.type == "request.finished", bytes(last.data)
    text: str = json.loads(bytes(last.data))["text"]
    tokens = [item for item in watcher.items if item.type == "tokens.generated"]
    assert "".join(json.loads(bytes(item.data))["text"] for item in tokens) == text
    return text


async def some_tokens(watchers: list[Watcher]) -> None:
    for watcher in watchers:
        await watcher.until(4, "tokens.generated")


async def kill_core(server: Server, watchers: list[Watcher]) -> None:
    await some_tokens(watchers)
    core = server.core_pid()
    assert core is not None
    os.kill(core, signal.SIGKILL)


async def kill_server(server: Server, watchers: list[Watcher]) -> None:
    await some_tokens(watchers)
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


async def drain_server(server: Server, watchers: list[Watcher]) -> None:
    await some_tokens(watchers)
    assert await asyncio.to_thread(server.kill, signal.SIGTERM) == 0
    await asyncio.to_thread(server.start)


async def test_the_answer_is_that_of_an_undisturbed_run(tmp_path: Path) -> None:
    database = tmp_path / "log.db"
    seen: list[Watcher] = []
    with running(database) as server:
        undisturbed, watchers = await answers(server, None)
        seen += watchers
        assert all(len(text) > 100 for text in undisturbed)
        assert undisturbed[0] != undisturbed[1]
        for disturb in (kill_core, kill_server, drain_server):
            texts, watchers = await answers(server, disturb)
            assert texts == undisturbed, disturb.__name__
            seen += watchers
        crashed = [w for w in seen if w.count("request.abandoned")]
        assert crashed, "no kill hit a request: the test proves nothing"
        await asyncio.to_thread(server.kill)
    await check_log(database, seen)

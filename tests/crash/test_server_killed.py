"""`kill -9` of the server under load: nothing that was acknowledged or shown is lost."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest

from app.events.ids import uuid7
from app.transport.client import Client
from tests.crash.checks import check_log
from tests.crash.watcher import TERMINAL, Watcher
from tests.support.server import Server, running

CHATTER = str(Path(__file__).parent / "chatter.py")
KILLS = 4
THREADS = 6

pytestmark = pytest.mark.crash


async def talk(watcher: Watcher, turns: int) -> None:
    """Post the next message whenever the last run has ended."""
    for turn in range(1, turns + 1):
        await watcher.post(f"turn {turn}")
        await watcher.until(turn, *TERMINAL)


async def kill_at_random(server: Server, client: Client, seed: int) -> None:
    """Kill and restart the server a few times, at moments after the client's return."""
    moments = random.Random(seed)
    for round_ in range(KILLS):
        while client.connections == round_:  # noqa: ASYNC110 - it tells nobody when it is back
            await asyncio.sleep(0.02)
        await asyncio.sleep(moments.uniform(0.1, 1.0))
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)


async def test_nothing_shown_or_acknowledged_is_lost(tmp_path: Path) -> None:
    database = tmp_path / "log.db"
    with running(database, CHATTER, "--no-engine") as server:
        async with Client(server.url, patience=60) as client:
            watchers = [Watcher(client, uuid7()) for _ in range(THREADS)]
            followers = [asyncio.create_task(watcher.follow()) for watcher in watchers]
            async with asyncio.timeout(120), asyncio.TaskGroup() as group:
                group.create_task(kill_at_random(server, client, seed=KILLS))
                for watcher in watchers:
                    group.create_task(talk(watcher, turns=KILLS + 1))
            for follower in followers:
                follower.cancel()
            await asyncio.gather(*followers, return_exceptions=True)
        interrupted = sum(watcher.count("run.interrupted") for watcher in watchers)
        assert interrupted > 0, "no kill hit a run: the test proves nothing"
        await asyncio.to_thread(server.kill)
    await check_log(database, watchers)


async def test_a_stop_by_sigterm_marks_what_it_cuts_off(tmp_path: Path) -> None:
    database = tmp_path / "log.db"
    with running(database, CHATTER, "--no-engine") as server:
        async with Client(server.url, patience=60) as client:
            watcher = Watcher(client, uuid7())
            follower = asyncio.create_task(watcher.follow())
            await watcher.post("hello")
            await watcher.until(3, "message.delta")
            assert await asyncio.to_thread(server.kill, signal.SIGTERM) == 0
            await asyncio.to_thread(server.start)
            await watcher.until(1, *TERMINAL)
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
        await asyncio.to_thread(server.kill)
    await check_log(database, [watcher])

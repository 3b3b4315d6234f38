"""Clients that post and follow without a pause, and note all they are told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from app.events.envelope import Event
from app.events.ids import uuid7
from app.transport.client import Client
from tests.crash.checks import check_log
from tests.crash.plan import plan, play, seed
from tests.crash.watcher import TERMINAL, Watcher
from tests.crash.world import World

__all__ = ["Load", "torture"]

PATIENCE = 60.0
STALL = 30.0
"""Longest time without anything new in a thread, in seconds."""


class Load:
    """Some clients; each thread is posted to by one of them and followed by another as well.

    Args:
        url: Of the service.
        threads: How many conversations.
        chance: Decides when messages are posted side by side, and stopped.
        options: Of every post.

    """

    def __init__(self, url: str, threads: int, chance: random.Random, **options: Any) -> None:
        self._clients = [Client(url, patience=PATIENCE) for _ in range(3)]
        ids = [uuid7() for _ in range(threads)]
        self.writers = [Watcher(self._client(at), thread) for at, thread in enumerate(ids)]
        self.readers = [Watcher(self._client(at + 1), thread) for at, thread in enumerate(ids)]
        self._chance = chance
        self._options = options
        self._enough = asyncio.Event()
        self._stack = AsyncExitStack()
        self._followers: list[asyncio.Task[None]] = []
        self._talkers: list[asyncio.Task[None]] = []

    @property
    def watchers(self) -> list[Watcher]:
        """All who were told something."""
        return [*self.writers, *self.readers]

    async def __aenter__(self) -> Self:
        for client in self._clients:
            await self._stack.enter_async_context(client)
        self._followers = [asyncio.create_task(watcher.follow()) for watcher in self.watchers]
        self._talkers = [asyncio.create_task(self._talk(watcher)) for watcher in self.writers]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (*self._talkers, *self._followers):
            task.cancel()
        await asyncio.gather(*self._talkers, *self._followers, return_exceptions=True)
        await self._stack.aclose()

    async def more(self) -> None:
        """Wait until everybody is told something more."""
        async with asyncio.TaskGroup() as group:
            for watcher in self.watchers:
                group.create_task(self._shown_more(watcher))

    async def settle(self) -> None:
        """Post no more, and wait until everything posted has been answered and shown to all."""
        self._enough.set()
        await asyncio.gather(*self._talkers)
        for writer, reader in zip(self.writers, self.readers, strict=True):
            await reader.until(len(writer.acks), *TERMINAL)

    # ------------------------------------------------------------------------- internal

    def _client(self, at: int) -> Client:
        return self._clients[at % len(self._clients)]

    async def _talk(self, watcher: Watcher) -> None:
        """Post whenever all has been answered: one message, two at once, or one that is stopped."""
        while not self._enough.is_set():
            way = self._chance.random()
            posts = [self._post(watcher) for _ in range(2 if way < 0.3 else 1)]
            await asyncio.gather(*posts)
            if way > 0.8:  # by another client, perhaps through another edge
                await asyncio.sleep(self._chance.uniform(0.0, 0.5))
                await self._clients[self.writers.index(watcher) - 1].stop(watcher.thread)
            await watcher.until(len(watcher.acks), *TERMINAL)

    async def _post(self, watcher: Watcher) -> None:
        await watcher.post(f"Tell me story number {len(watcher.acks)}.", **self._options)

    async def _shown_more(self, watcher: Watcher) -> None:
        for task in (*self._talkers, *self._followers):
            if task.done():
                task.result()  # raises what it failed with
        try:
            await watcher.more(seconds=STALL)
        except TimeoutError:
            role = "writer" if watcher in self.writers else "reader"
            last = watcher.items[-1].v if watcher.items else 0
            raise AssertionError(
                f"nothing new in thread {watcher.thread} for its {role} after version {last}"
            ) from None


async def torture(
    world: World, kinds: Sequence[str], *, threads: int, **options: Any
) -> tuple[list[Event], Load]:
    """Do harm under load, then check everything; returns the log and who was told of it."""
    number = seed()
    print(f"\nseed {number} ({Path(str(world.database)).name}): TORTURE_SEED={number}")
    async with Load(world.front.url, threads, random.Random(number), **options) as load:
        await load.more()
        await play(plan(kinds, number), world, load.more)
        await load.settle()
    world.end()
    await world.cores_gone()
    return await check_log(world.database, load.watchers), load

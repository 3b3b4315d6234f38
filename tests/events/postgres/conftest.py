"""Helpers for what only a log with many writing processes has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.events.envelope import Event
from app.events.postgres import PostgresStore
from app.events.store import Append, Appended
from tests.contract.support import note


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresStore]:
    """A node's store."""
    store = await PostgresStore.open(url)
    try:
        yield store
    finally:
        await store.aclose()


class Writer:
    """Appends one event after the other and remembers what was acknowledged."""

    def __init__(self, store: PostgresStore, name: str) -> None:
        self.store, self.name = store, name
        self.acknowledged: list[tuple[int, bytes]] = []
        self.stopping = False
        self.count = 0

    async def run(self, most: int = 10**9) -> None:
        while not self.stopping and self.count < most:
            event = note(f"{self.name}:{self.count}")
            self.count += 1
            done = await self.store.append(Append(stream=f"thread/{self.name}", events=[event]))
            assert isinstance(done, Appended)
            self.acknowledged.append((done.first_seq, event.data))


class Follower:
    """Follows in the background and keeps everything."""

    def __init__(self, store: PostgresStore) -> None:
        self.seen: list[Event] = []
        self._more = asyncio.Event()
        self._task = asyncio.create_task(self._run(store))

    async def _run(self, store: PostgresStore) -> None:
        async for events in store.follow(after=0):
            self.seen += events
            self._more.set()

    async def reached(self, seq: int, seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not self.seen or self.seen[-1].seq < seq:
                self._more.clear()
                await self._more.wait()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def check(store: PostgresStore, writers: list[Writer], followers: list[Follower]) -> None:
    """Everything acknowledged is there once, without gaps, and followers saw exactly the log."""
    events = [event async for event in store.read()]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    versions: dict[str, int] = {}
    for event in events:
        versions[event.stream] = versions.get(event.stream, 0) + 1
        assert event.version == versions[event.stream]
    for writer in writers:
        for seq, data in writer.acknowledged:
            assert events[seq - 1].data == data
        own = [event.data for event in events if event.stream == f"thread/{writer.name}"]
        assert own == [note(f"{writer.name}:{at}").data for at in range(len(own))]
        assert len(writer.acknowledged) <= len(own) <= writer.count
    for follower in followers:
        await follower.reached(len(events))
        assert follower.seen == events


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[PostgresStore]:
    async with opened(postgres_url) as store:
        yield store

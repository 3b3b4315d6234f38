"""A client that remembers everything it was told, and a check of that against the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

from app.events.envelope import Event, thread_stream
from app.events.open import open_store
from app.events.verify import verify
from app.transport.client import Client
from app.transport.protocol import Ack, Item, Live
from tests.support.projections import assert_rebuild_equals_live

TERMINAL = {"run.completed", "run.failed", "run.stopped", "run.interrupted"}


class Watcher:
    """Follows one thread through every crash and notes what was shown and acknowledged."""

    def __init__(self, client: Client, thread: str) -> None:
        self.client = client
        self.thread = thread
        self.items: list[Item] = []
        self.acks: list[Ack] = []
        self.changed = asyncio.Event()

    async def follow(self) -> None:
        """Note every item, for ever."""
        async with contextlib.aclosing(self.client.follow(self.thread)) as frames:
            async for frame in frames:
                assert isinstance(frame, Item | Live), f"unexpected {frame}"
                if isinstance(frame, Item):
                    self.items.append(frame)
                    self.changed.set()

    async def post(self, content: str) -> None:
        """Post and note the acknowledgement, however many servers it takes."""
        self.acks.append(await self.client.post(self.thread, content))

    def count(self, *types: str) -> int:
        """How many items of these types were shown."""
        return sum(item.type in types for item in self.items)

    async def until(self, count: int, *types: str) -> None:
        """Wait until so many items of these types were shown."""
        async with asyncio.timeout(60):
            while self.count(*types) < count:
                self.changed.clear()
                await self.changed.wait()


def _text(data: bytes) -> str:
    return str(json.loads(data).get("text", ""))


def check_shown(watcher: Watcher, log: list[Event]) -> None:
    """Everything shown is in the log, in order, once; nothing between was left out."""
    position = 0
    for item in watcher.items:
        assert item.v == position + 1, f"shown {item.v} after {position}"
        covered = log[position : item.last]
        assert covered, f"{item.type} at {item.v} was shown but is not in the log"
        assert covered[-1].seq == item.seq
        assert {event.type for event in covered} == {item.type}
        if item.to is None:
            assert bytes(item.data) == covered[0].data
        else:
            assert _text(bytes(item.data)) == "".join(_text(event.data) for event in covered)
        position = item.last


def check_acks(watcher: Watcher, log: list[Event]) -> None:
    """Every acknowledged post is in the log once."""
    posts = [event for event in log if event.type == "message.posted" and b'"user"' in event.data]
    assert len(posts) == len(watcher.acks), "an acknowledged post is missing or there twice"
    for ack in watcher.acks:
        assert any(event.cause == ack.id or event.seq <= ack.seq for event in posts)
        assert log[ack.version - 1].seq == ack.seq


async def check_log(database: Path, watchers: list[Watcher]) -> None:
    """Check log, seals, what was shown, and that the read models equal a rebuild."""
    async with open_store(f"sqlite:///{database}") as store:
        report = await verify(store)
        assert report.ok, report.problems
        seqs = [event.seq async for event in store.read()]
        assert seqs == list(range(1, len(seqs) + 1))
        for watcher in watchers:
            stream = thread_stream(watcher.thread)
            log = [event async for event in store.read(stream=stream)]
            check_shown(watcher, log)
            check_acks(watcher, log)
        await assert_rebuild_equals_live(store, f"{database}.views")

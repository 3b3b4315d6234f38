"""A client that remembers everything it was told; `tests.crash.checks` holds it against the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from app.events.envelope import Event
from app.events.ids import uuid7
from app.transport.client import Client, Refusal
from app.transport.protocol import Ack, Item, Live

TERMINAL = {"run.completed", "run.failed", "run.stopped", "run.interrupted"}
"""How a run ends."""


class Watcher:
    """Follows one thread through every crash and notes what was shown and acknowledged."""

    def __init__(self, client: Client, thread: str) -> None:
        self.client = client
        self.thread = thread
        self.items: list[Item] = []
        self.acks: list[Ack] = []
        self.refusals: list[str] = []
        self.changed = asyncio.Event()

    async def follow(self) -> None:
        """Note every item, for ever."""
        async with contextlib.aclosing(self.client.follow(self.thread)) as frames:
            async for frame in frames:
                assert isinstance(frame, Item | Live), f"unexpected {frame}"
                if isinstance(frame, Item):
                    self.items.append(frame)
                    self.changed.set()

    async def post(self, content: str, **options: Any) -> None:
        """Post and note the acknowledgement, however many servers it takes.

        What is refused because the log does not take it is posted again, with the same id.
        """
        command = uuid7()
        while True:
            try:
                ack = await self.client.post(self.thread, content, id=command, **options)
            except Refusal as refusal:
                if refusal.code != "unavailable":
                    raise
                self.refusals.append(str(refusal))
                await asyncio.sleep(0.2)
                continue
            self.acks.append(ack)
            return

    def count(self, *types: str) -> int:
        """How many items of these types were shown."""
        return sum(item.type in types for item in self.items)

    async def until(self, count: int, *types: str, seconds: float = 60) -> None:
        """Wait until so many items of these types were shown."""
        async with asyncio.timeout(seconds):
            while self.count(*types) < count:
                self.changed.clear()
                await self.changed.wait()

    async def more(self, *, seconds: float = 60) -> None:
        """Wait until it is shown something more."""
        seen = len(self.items)
        async with asyncio.timeout(seconds):
            while len(self.items) == seen:
                self.changed.clear()
                await self.changed.wait()


def data(event: Event | Item) -> dict[str, Any]:
    """Payload of an event or an item."""
    payload: dict[str, Any] = json.loads(bytes(event.data))
    return payload


def text(data: bytes | memoryview) -> str:
    """Text of a payload that has one."""
    return str(json.loads(bytes(data)).get("text", ""))

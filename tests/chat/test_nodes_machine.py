"""Whatever happens to nodes that share a log: one run at a time, every message answered once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import app as el
from app.chat.errors import Refused
from app.events.codec import decode
from app.events.envelope import Event
from app.events.ids import uuid7
from app.events.memory import MemoryStore
from tests.chat.conftest import Chat, app_of, serving

pytestmark = pytest.mark.timeout(240)

NODES = "abc"
LEASE = 0.3

steps = st.lists(
    st.one_of(
        st.tuples(st.just("post"), st.sampled_from(NODES), st.integers(0, 12)),
        st.tuples(st.just("stop"), st.sampled_from(NODES), st.just(0)),
        st.tuples(st.just("kill"), st.sampled_from(NODES), st.just(0)),
        st.tuples(st.just("drain"), st.sampled_from(NODES), st.just(0)),
        st.tuples(st.just("sleep"), st.just(""), st.integers(0, 20)),
    ),
    max_size=25,
)


async def talk(message: el.Message) -> None:
    answer = el.Message()
    for n in range(int(message.content)):
        await answer.stream_token(f"{n} ")
        await asyncio.sleep(0.002)
    await answer.send()


class House:
    """Nodes on one log in memory, started when they are needed."""

    def __init__(self, store: MemoryStore, app: Any) -> None:
        self.store = store
        self.app = app
        self.thread = uuid7()
        self.posted: dict[str, str] = {}
        self._up: dict[str, tuple[contextlib.AsyncExitStack, Chat]] = {}

    async def node(self, name: str) -> Chat:
        if name not in self._up:
            stack = contextlib.AsyncExitStack()
            chat = await stack.enter_async_context(
                serving(self.store, self.app, node=name, lease=LEASE)
            )
            self._up[name] = stack, chat
        return self._up[name][1]

    async def do(self, step: tuple[str, str, int]) -> None:
        what, name, number = step
        if what == "sleep":
            await asyncio.sleep(number / 1000)
        elif what == "post":
            chat, message = await self.node(name), uuid7()
            await chat.post(self.thread, str(number), message=message)
            self.posted[message] = str(number)
        elif what == "stop":
            with contextlib.suppress(Refused):
                await (await self.node(name)).stop(self.thread)
        elif name in self._up:
            stack, chat = self._up.pop(name)
            if what == "drain":
                await chat.runtime.drain(0.01)
            await stack.aclose()

    async def settle(self) -> list[Event]:
        """Bring all nodes up, have every message answered, and take them down."""
        for name in NODES:
            await self.node(name)
        chat = await self.node(NODES[0])
        if self.posted:
            await chat.runtime.connected(self.thread, "local")
            await chat.settled(self.thread, runs=len(self.posted))
        while self._up:
            await self.do(("kill", next(iter(self._up)), 0))
        return await chat.events(self.thread)


def check(events: list[Event], posted: dict[str, str], resumable: bool) -> None:
    running: str | None = None
    answered: list[str] = []
    asked = [d.message for e in events if (d := decode(e)) and getattr(d, "role", "") == "user"]
    for event in events:
        payload: Any = decode(event)
        if event.type == "run.started":
            assert running is None, "two runs at once"
            running = payload.run
            answered.append(payload.message)
        elif event.type == "run.resumed":
            assert resumable and running == payload.run
        elif event.type in ("run.completed", "run.failed", "run.stopped", "run.interrupted"):
            assert running == payload.run, f"{event.type} of a run that had ended"
            running = None
    assert running is None
    assert asked == list(posted) == answered


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps, resumable=st.booleans())
def test_one_run_at_a_time_and_one_for_each_message(
    steps: list[tuple[str, str, int]], resumable: bool
) -> None:
    async def play() -> None:
        app = app_of(on_message=talk)
        app.resumable = resumable
        async with MemoryStore() as store:
            house = House(store, app)
            for step in steps:
                await house.do(step)
            check(await house.settle(), house.posted, resumable)

    asyncio.run(play())

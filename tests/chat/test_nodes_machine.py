"""Whatever happens to nodes that share a log: one run at a time, every message answered once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import app as el
from app.chat.jobs import running, waits
from app.events.codec import decode
from app.events.envelope import Event
from app.events.ids import uuid7
from app.events.memory import MemoryStore
from tests.chat.conftest import Chat, app_of, serving

pytestmark = pytest.mark.timeout(240)

NODES = "abc"
LEASE = 0.3

Step = tuple[str, str, int]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("post"), st.sampled_from(NODES), st.integers(0, 12)),
        st.tuples(st.just("post"), st.sampled_from(NODES), st.integers(0, 2)),
        st.tuples(st.sampled_from(("stop", "kill", "drain")), st.sampled_from(NODES), st.just(0)),
        st.tuples(st.just("sleep"), st.just(""), st.integers(0, 20)),
    ),
    min_size=5,
    max_size=25,
)


async def talk(message: el.Message) -> None:
    answer = el.Message()
    for n in range(int(message.content)):
        await answer.stream_token(f"{n} ")
        await asyncio.sleep(0.002)
    await answer.send()


class House:
    """Nodes on one log in memory, started when they are needed. Commands go out side by side."""

    def __init__(self, store: MemoryStore, app: Any) -> None:
        self.store = store
        self.app = app
        self.thread = uuid7()
        self.acked: set[str] = set()
        self._up: dict[str, tuple[contextlib.AsyncExitStack, Chat]] = {}
        self._commands: list[asyncio.Task[None]] = []

    async def node(self, name: str) -> Chat:
        if name not in self._up:
            stack = contextlib.AsyncExitStack()
            chat = await stack.enter_async_context(
                serving(self.store, self.app, node=name, lease=LEASE)
            )
            self._up[name] = stack, chat
        return self._up[name][1]

    async def do(self, step: Step) -> None:
        what, name, number = step
        if what == "sleep":
            await asyncio.sleep(number / 1000)
        elif what in ("post", "stop"):
            chat = await self.node(name)
            command = self._post(chat, number) if what == "post" else self._stop(chat)
            self._commands.append(asyncio.create_task(command))
        elif name in self._up:
            stack, chat = self._up.pop(name)
            if what == "drain":
                await chat.runtime.drain(0.01)
            await stack.aclose()

    async def _post(self, chat: Chat, number: int) -> None:
        message = uuid7()
        await chat.post(self.thread, str(number), message=message)
        self.acked.add(message)

    async def _stop(self, chat: Chat) -> None:
        await chat.stop(self.thread)

    async def settle(self, last: str) -> list[Event]:
        """Leave it to one node, which has every message answered."""
        with contextlib.suppress(TimeoutError):  # commands of nodes that are dead wait for ever
            async with asyncio.timeout(0.1):
                await asyncio.gather(*self._commands, return_exceptions=True)
        for name in NODES.replace(last, ""):
            await self.do(("kill", name, 0))
        chat = await self.node(last)
        if await chat.version(self.thread):
            await chat.runtime.connected(self.thread, "local")
            await chat.until(self.thread, lambda s: not running(s) and not waits(s))
        await self.do(("kill", last, 0))
        return await chat.events(self.thread)


def check(events: list[Event], acked: set[str], resumable: bool) -> None:
    now: str | None = None
    asked: list[str] = []
    answered: list[str] = []
    for event in events:
        payload: Any = decode(event)
        if event.type == "message.posted" and payload.role == "user":
            asked.append(payload.message)
        elif event.type == "run.started":
            assert now is None, "two runs at once"
            now = payload.run
            answered.append(payload.message)
        elif event.type == "run.resumed":
            assert resumable and now == payload.run
        elif event.type in ("run.completed", "run.failed", "run.stopped", "run.interrupted"):
            assert now == payload.run, f"{event.type} of a run that had ended"
            now = None
    assert now is None
    assert asked == answered
    assert acked <= set(asked)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps, last=st.sampled_from(NODES), resumable=st.booleans())
def test_one_run_at_a_time_and_one_for_each_message(
    steps: list[Step], last: str, resumable: bool
) -> None:
    async def play() -> None:
        app = app_of(on_message=talk)
        app.resumable = resumable
        async with MemoryStore() as store:
            house = House(store, app)
            for step in steps:
                await house.do(step)
            check(await house.settle(last), house.acked, resumable)

    asyncio.run(play())

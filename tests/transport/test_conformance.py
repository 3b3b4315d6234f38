"""The protocol's rules as data, run against a real server.

A script has events to begin with (``log``) and steps:

- ``send`` a frame, or ``raw`` text; ``expect`` the next frame (``threads`` hints are passed over):
  every key given must be equal, ``$name`` stands for the same value wherever it is used;
- ``append`` events to the thread; ``cut`` the connection; ``connect`` again;
  ``closed`` with a code.

Events: ``created``, ``started``, ``delta:TEXT``.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from app.events.catalogue import MessageDelta, MessageStarted, Payload, ThreadCreated
from app.events.codec import new
from app.events.envelope import thread_stream
from app.events.store import Append, Appended
from app.transport.server import Service
from tests.transport.serving import Raw, raw

SCRIPTS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "conformance" / "server.json").read_text()
)


def payload(text: str) -> Payload:
    if text == "created":
        return ThreadCreated(owner="local")
    if text == "started":
        return MessageStarted(message="m")
    return MessageDelta(message="m", text=text.removeprefix("delta:"))


class Script:
    """One script being run."""

    def __init__(self, service: Service, stack: AsyncExitStack) -> None:
        self.service = service
        self.stack = stack
        self.bound: dict[str, Any] = {"$incarnation": service.store.incarnation}
        self.client: Raw | None = None

    async def connect(self, *, hello: bool = True) -> None:
        self.client = await self.stack.enter_async_context(raw(self.service.url, hello=hello))

    async def append(self, events: list[str], thread: str) -> None:
        if not events:
            return
        made = [new(payload(text), actor="handler:test") for text in events]
        outcome = await self.service.store.append(Append(stream=thread_stream(thread), events=made))
        assert isinstance(outcome, Appended)

    async def step(self, step: dict[str, Any]) -> None:
        if "connect" in step:
            await self.connect()
        elif "append" in step:
            await self.append(step["append"], step.get("thread", "a"))
        else:
            assert self.client is not None
            await self.talk(self.client, step)

    async def talk(self, client: Raw, step: dict[str, Any]) -> None:
        match step:
            case {"send": frame}:
                await client.send(self.fill(frame))
            case {"raw": text}:
                await client.send(text)
            case {"expect": wanted}:
                self.compare(wanted, await client.recv(), "")
            case {"cut": _}:
                client.socket.transport.abort()
            case {"closed": code}:
                assert (await client.closed())[0] == code

    def fill(self, frame: dict[str, Any]) -> dict[str, Any]:
        return {
            key: self.bound.get(value, value) if isinstance(value, str) else value
            for key, value in frame.items()
        }

    def compare(self, wanted: Any, got: Any, path: str) -> None:
        if isinstance(wanted, str) and wanted.startswith("$"):
            assert self.bound.setdefault(wanted, got) == got, path
        elif isinstance(wanted, dict) and path != ".heads":
            for key, value in wanted.items():
                assert key in got, f"{path}.{key} is missing in {got}"
                self.compare(value, got[key], f"{path}.{key}")
        elif isinstance(wanted, list):
            assert len(wanted) == len(got), path
            for n, (one, other) in enumerate(zip(wanted, got, strict=True)):
                self.compare(one, other, f"{path}[{n}]")
        else:
            assert got == wanted, path


@pytest.mark.timeout(30)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script["name"]))
async def test_script(service: Service, script: dict[str, Any]) -> None:
    async with AsyncExitStack() as stack:
        running = Script(service, stack)
        await running.append(script["log"], "a")
        await running.connect(hello=script.get("hello", True))
        for step in script["steps"]:
            await running.step(step)

"""A real service in this process, and raw sockets to talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from app.config import (
    ApiConfig,
    Config,
    DatabaseConfig,
    EngineConfig,
    ObjectsConfig,
    ServerConfig,
    TelemetryConfig,
)
from app.transport.server import Service, serve

#: A chat without a model. What it does depends on what it is told.
CHAT = """
import asyncio
from app.chat.hooks import on_message
from app.chat.message import Message

@on_message
async def main(message):
    word, _, count = message.content.partition(" ")
    if word == "fail":
        raise ValueError("as told")
    reply = Message()
    for i in range(int(count or 3)):
        await reply.stream_token(f"{word}{i} ")
        await asyncio.sleep(0.001 if word == "fast" else 0.02)
    await reply.send()
"""


def chat_file(folder: Path) -> Path:
    """Write the chat above into a file."""
    file = folder / "chat.py"
    file.write_text(CHAT)
    return file


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    *,
    port: int = 0,
    file: Path | None = None,
    watch: bool = False,
    api: ApiConfig | None = None,
    database: str | None = None,
    objects: ObjectsConfig | None = None,
    telemetry: TelemetryConfig | None = None,
    **server: Any,
) -> AsyncIterator[Service]:
    """Run the service on a free port, by default with a SQLite log; drains at the end."""
    url = database or f"sqlite:///{folder / 'log.db'}"
    config = Config(
        server=ServerConfig(port=port, drain_seconds=2, **server),
        database=DatabaseConfig(url=url, synchronous="normal"),
        engine=EngineConfig(enabled=False),
        api=api or ApiConfig(),
        objects=objects or ObjectsConfig(url=str(folder / "objects")),
        telemetry=telemetry or TelemetryConfig(),
    )
    ready: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(
        serve(config, file=file or chat_file(folder), watch=watch, on_ready=ready.set_result)
    )
    await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    service = ready.result()
    try:
        yield service
    finally:
        service.stop()
        await running


class Raw:
    """A bare client: sends what it is told, shows what comes."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, frame: dict[str, Any] | str | bytes) -> None:
        """Send a frame; text and bytes go as they are."""
        data = json.dumps(frame) if isinstance(frame, dict) else frame
        await self.socket.send(data)

    async def recv(self, *, hints: bool = False) -> dict[str, Any]:
        """Return the next frame; ``threads`` may come at any time and is passed over."""
        async with asyncio.timeout(10):
            while True:
                frame: dict[str, Any] = json.loads(await self.socket.recv())
                if hints or frame["t"] != "threads":
                    return frame

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """Return frames up to the first of a kind, which is the last."""
        hints = kind == "threads"
        frames = [await self.recv(hints=hints)]
        while frames[-1]["t"] != kind:
            frames.append(await self.recv(hints=hints))
        return frames

    async def closed(self) -> tuple[int | None, str | None]:
        """Wait for the close; returns code and reason."""
        async with asyncio.timeout(15):
            await self.socket.wait_closed()
        return self.socket.close_code, self.socket.close_reason


@contextlib.asynccontextmanager
async def raw(url: str, *, hello: bool = True, **options: Any) -> AsyncIterator[Raw]:
    """Connect a bare client; with ``hello`` it is welcome already."""
    uri = url.replace("http", "ws", 1) + "/ws"
    async with connect(uri, compression=None, proxy=None, **options) as socket:
        client = Raw(socket)
        if hello:
            await client.send({"t": "hello", "protocol": "everlog.v1"})
            assert (await client.recv())["t"] == "welcome"
        yield client


class Response:
    """An HTTP answer."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


async def http(url: str, *, method: str = "GET", **headers: str) -> Response:
    """Make one HTTP request; underscores in header names become dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, method=method, headers=named)

    def fetch() -> Response:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return Response(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Response(error.code, error.headers, error.read())

    return await asyncio.to_thread(fetch)

"""The life of the process: start, failure to start, drain, reload."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from app.config import Config, DatabaseConfig, EngineConfig, ServerConfig
from app.errors import StartupError
from app.events.ids import uuid7
from app.transport.client import Client, ConnectFailed
from app.transport.protocol import Item, Notice
from app.transport.server import Service, serve
from tests.support.server import ROOT, Server
from tests.transport.serving import chat_file, http, raw, serving

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """`everlog serve chat.py` without an engine, in a process of its own."""
    env = {"EVERLOG_SERVER__DRAIN_SECONDS": "2"}
    made = Server(tmp_path / "log.db", str(chat_file(tmp_path)), "--no-engine", env=env)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait(10)


async def test_sigterm_drains_and_the_next_server_goes_on(server: Server) -> None:
    await asyncio.to_thread(server.start)
    thread = uuid7()
    notices: list[Notice] = []
    async with Client(server.url, on_notice=notices.append) as client, raw(server.url) as other:
        await client.post(thread, "word 1000")
        items = client.follow(thread)
        seen = [await anext(items) for _ in range(10)]
        begun = time.monotonic()
        status = await asyncio.to_thread(server.kill, signal.SIGTERM)
        assert status == 0, server.log()
        assert time.monotonic() - begun < 13
        assert await other.closed() == (1012, "restart")
        assert [notice.code for notice in notices] == ["draining"]
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(20), aclosing(items):
            async for item in items:
                seen.append(item)
                if isinstance(item, Item) and item.type == "run.interrupted":
                    break
        ack = await client.post(thread, "fast 1")
        assert ack.version > 0 and client.connections == 2
    versions = [v for item in seen if isinstance(item, Item) for v in range(item.v, item.last + 1)]
    assert versions == list(range(1, len(versions) + 1))


async def test_kill_loses_nothing_anyone_saw(server: Server) -> None:
    await asyncio.to_thread(server.start)
    thread = uuid7()
    async with Client(server.url) as client:
        await client.post(thread, "word 1000")
        items = client.follow(thread)
        seen = [await anext(items) for _ in range(12)]
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(20), aclosing(items):
            async for item in items:
                seen.append(item)
                if isinstance(item, Item) and item.type == "run.interrupted":
                    break
    page = await http(f"{server.url}/api/threads/{thread}/events?limit=2000")
    kept = {item["v"]: item["data"] for item in page.json["items"]}
    got = {i.v: msgspec.json.decode(i.data) for i in seen if isinstance(i, Item) and not i.to}
    assert {version: kept[version] for version in got} == got
    assert list(got) == sorted(got)


def test_a_second_signal_ends_it_at_once(server: Server) -> None:
    server.start()
    assert server.process is not None

    async def keep_busy() -> None:
        async with Client(server.url) as client:
            await client.post(uuid7(), "word 100000")

    asyncio.run(keep_busy())
    server.process.send_signal(signal.SIGTERM)
    for _ in range(200):  # until it drains: two signals at once count as one
        if server.get("/readyz") == 503:
            break
        time.sleep(0.02)
    begun = time.monotonic()
    assert server.kill(signal.SIGTERM) == 128 + signal.SIGTERM
    assert time.monotonic() - begun < 2


async def test_while_it_drains_it_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as service, raw(service.url) as client:
        await client.send({"t": "post", "id": uuid7(), "thread": uuid7(), "content": "word 90"})
        await client.until("ack")
        service.stop()
        await client.until("notice")
        ready = await http(f"{service.url}/readyz")
        assert ready.status == 503
        assert ready.json["checks"]["service"] == "draining"
        assert (await http(f"{service.url}/healthz")).status == 200
        await client.send({"t": "post", "id": uuid7(), "thread": uuid7(), "content": "x"})
        assert (await client.until("refuse"))[-1]["code"] == "draining"
        assert await client.closed() == (1012, "restart")
    with pytest.raises(ConnectFailed):
        async with Client(service.url):
            pass


def config(folder: Path, **sections: object) -> Config:
    return Config(
        server=sections.get("server", ServerConfig(port=0)),  # type: ignore[arg-type]
        database=DatabaseConfig(url=f"sqlite:///{folder / 'log.db'}"),
        engine=sections.get("engine", EngineConfig(enabled=False)),  # type: ignore[arg-type]
    )


async def test_a_busy_port_is_named_before_anything_is_opened(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"127.0.0.1:{port}") as caught:
            await serve(config(tmp_path, server=ServerConfig(port=port)))
    assert caught.value.hint is not None and f"--port {port + 1}" in caught.value.hint
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
async def test_a_strange_address_is_explained(tmp_path: Path, host: str) -> None:
    with pytest.raises(StartupError, match=re.escape(host)) as caught:
        await serve(config(tmp_path, server=ServerConfig(host=host, port=0)))
    assert caught.value.hint


async def test_a_bad_chat_file_is_a_startup_error(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def (:\n")
    with pytest.raises(StartupError, match=r"broken.py:1"):
        await serve(config(tmp_path), file=file)


async def test_a_bad_model_is_a_startup_error(tmp_path: Path) -> None:
    model = tmp_path / "bad.gguf"
    model.write_bytes(b"GGUF" + bytes(100))
    engine = EngineConfig(model=str(model))
    with pytest.raises(StartupError):
        async with asyncio.timeout(60):
            await serve(config(tmp_path, engine=engine))


def test_a_bad_model_is_exit_code_3(tmp_path: Path) -> None:
    model = tmp_path / "bad.gguf"
    model.write_bytes(b"no model")
    command = [sys.executable, "-m", "app", "serve", "--port", "0", "--model", str(model)]
    command += ["--database", f"sqlite:///{tmp_path / 'log.db'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert "bad.gguf" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_log_in_memory(tmp_path: Path) -> None:
    settings = Config(
        server=ServerConfig(port=0),
        database=DatabaseConfig(url="memory:"),
        engine=EngineConfig(enabled=False),
    )
    ready: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(
        serve(settings, file=chat_file(tmp_path), on_ready=ready.set_result)
    )
    service = await ready
    async with Client(service.url) as client:
        assert (await client.post(uuid7(), "fast 1")).version == 3
    service.stop()
    await running


async def test_a_saved_file_is_reloaded_without_a_new_page(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    file = chat_file(folder)
    async with serving(tmp_path, file=file, watch=True) as service, raw(service.url) as client:
        await asyncio.sleep(0.5)  # the watcher looks around first
        file.write_text("def (:\n")
        failed = (await client.until("notice"))[-1]
        assert (failed["level"], failed["code"]) == ("error", "reload_failed")
        assert "chat.py:1" in failed["message"]
        chat_file(folder)
        assert (await client.until("notice"))[-1]["code"] == "reloaded"
        await client.send({"t": "post", "id": uuid7(), "thread": uuid7(), "content": "fast 1"})
        await client.until("ack")

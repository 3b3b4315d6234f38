"""Sockets: who may connect, and what ends a connection."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.events.ids import uuid7
from app.transport import connection
from app.transport.origin import Gate
from app.transport.server import Service
from tests.transport.serving import http, raw, serving


async def refused(url: str, path: str, **options: object) -> int:
    with pytest.raises(InvalidStatus) as caught:
        async with connect(url.replace("http", "ws") + path, proxy=None, **options):  # type: ignore[arg-type]
            pass
    return caught.value.response.status_code


async def test_sockets_live_at_one_path(service: Service) -> None:
    assert await refused(service.url, "/") == 404
    assert await refused(service.url, "/ws2") == 404
    async with raw(service.url + "", hello=False) as client:
        await client.send({"t": "hello", "protocol": "everlog.v1", "token": None})
        welcome = await client.recv()
    assert welcome["incarnation"] == service.store.incarnation
    assert welcome["user"] == {"id": "local"}
    assert welcome["model"] is None
    assert welcome["app"] == {"name": "chat"}


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", ""])
async def test_pages_of_other_sites_are_sent_away(service: Service, origin: str) -> None:
    async with raw(service.url, hello=False, origin=origin) as client:
        assert (await client.closed())[0] == 4403


async def test_own_pages_and_listed_ones_get_in(tmp_path: Path) -> None:
    async with serving(tmp_path, origins=["https://chat.example.org"]) as service:
        for origin in (service.url, "https://chat.example.org", None):
            async with raw(service.url, origin=origin):
                pass


async def test_a_strange_host_is_refused(service: Service) -> None:
    host = {"Host": "evil.example"}
    assert await refused(service.url, "/ws", additional_headers=host) in (400, 403)
    assert (await http(f"{service.url}/api/info", Host="evil.example")).status == 421
    assert (await http(f"{service.url}/api/info", Host="localhost:1234")).status == 200


@pytest.mark.parametrize(
    ("listen", "origins", "origin", "host", "host_ok", "origin_ok"),
    [
        ("127.0.0.1", [], "http://localhost:8000", "localhost:8000", True, True),
        ("127.0.0.1", [], "http://[::1]:8000", "[::1]:8000", True, True),
        ("127.0.0.1", [], "http://LOCALHOST:8000", "localhost:8000", True, True),
        ("127.0.0.1", [], "http://evil.example:8000", "evil.example:8000", False, True),
        ("127.0.0.1", [], "http://localhost.evil.example", "localhost.evil.example", False, True),
        ("0.0.0.0", [], "http://box:8000", "box:8000", True, True),
        ("0.0.0.0", [], "https://box", "box", True, True),
        ("0.0.0.0", [], "https://box", "box:443", True, True),
        ("0.0.0.0", [], "http://box:9000", "box:8000", True, False),
        ("0.0.0.0", [], "null", "box:8000", True, False),
        ("0.0.0.0", [], "http://box:8000", None, True, False),
        ("0.0.0.0", [], "http://:8000", ":8000", True, False),
        ("0.0.0.0", [], "http://a:b:c", "a:b:c", True, False),
        ("127.0.0.1", ["https://x.org/"], "https://x.org", "x.org", True, True),
        ("127.0.0.1", ["https://x.org"], "https://y.org", "x.org", True, False),
        ("127.0.0.1", ["*"], "https://y.org", "x.org", True, True),
    ],
)
def test_gate(
    listen: str, origins: list[str], origin: str, host: str | None, host_ok: bool, origin_ok: bool
) -> None:
    gate = Gate(listen, origins)
    assert gate.host(host) is host_ok
    assert gate.origin(origin, host) is origin_ok


async def test_hello_comes_first_and_in_our_protocol(service: Service) -> None:
    async with raw(service.url, hello=False) as client:
        await client.send({"t": "ping", "n": 1})
        assert await client.closed() == (1008, "hello first")
    async with raw(service.url, hello=False) as client:
        await client.send({"t": "hello", "protocol": "everlog.v9"})
        assert await client.closed() == (4426, "this server speaks everlog.v1")
    async with raw(service.url, hello=False) as client:
        await client.send("nonsense")
        assert (await client.recv())["code"] == "bad_frame"
        assert (await client.closed())[0] == 1008


async def test_no_hello_is_not_waited_for_for_ever(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HELLO_SECONDS", 0.05)
    async with raw(service.url, hello=False) as client:
        assert await client.closed() == (1008, "no hello")


async def test_bad_frames_are_refused_and_the_connection_stays(service: Service) -> None:
    async with raw(service.url) as client:
        for frame, code, field in (
            ("{", "bad_frame", None),
            ('{"t":"dance"}', "bad_frame", "t"),
            ('{"t":"open","thread":5}', "bad_field", "thread"),
            ('{"t":"regenerate"}', "unsupported", None),
            (b"\x00\x01", "unsupported", None),
            ('{"t":"hello","protocol":"everlog.v1"}', "bad_frame", None),
        ):
            await client.send(frame)
            refusal = await client.recv()
            assert (refusal["t"], refusal["code"], refusal["field"]) == ("refuse", code, field)
            assert refusal["message"]
        await client.send({"t": "ping", "n": 7})
        assert await client.recv() == {"t": "pong", "n": 7, "heads": {}}


async def test_a_flood_of_bad_frames_ends_the_connection(service: Service) -> None:
    async with raw(service.url) as client:
        with pytest.raises(ConnectionClosed):
            for _ in range(200):
                await client.send("{")
                await client.recv()
        assert (await client.closed())[0] == 1008


async def test_an_oversize_frame_is_1009(tmp_path: Path) -> None:
    async with serving(tmp_path, max_frame=2000) as service:
        async with raw(service.url) as client:
            await client.send({"t": "ping", "n": 1})
            await client.recv()
            await client.send(json.dumps({"t": "ping", "n": 1, "x": "y" * 3000}))
            assert (await client.closed())[0] == 1009
        async with raw(service.url) as client:  # the others are not concerned
            await client.send({"t": "ping", "n": 2})
            assert (await client.recv())["n"] == 2


async def test_text_that_is_not_utf8_is_1007(service: Service) -> None:
    async with raw(service.url) as client:
        await client.socket.send(b'{"t":"ping\xff"}', text=True)
        assert (await client.closed())[0] == 1007


async def test_at_most_so_many_threads(service: Service) -> None:
    async with raw(service.url) as client:
        for n in range(connection.MAX_THREADS):
            await client.send({"t": "open", "thread": f"t{n}"})
            assert await client.recv() == {"t": "live", "thread": f"t{n}", "version": 0}
        await client.send({"t": "open", "thread": "more"})
        refusal = await client.recv()
        assert (refusal["code"], refusal["thread"]) == ("limit", "more")
        await client.send({"t": "close", "thread": "t0"})
        await client.send({"t": "open", "thread": "more"})
        assert (await client.recv())["t"] == "live"


async def test_frames_of_one_packet_are_all_taken(service: Service) -> None:
    """Two frames in one write, the first thing after the handshake."""
    port = int(re.search(r":(\d+)$", service.url)[1])  # type: ignore[index]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    frames = [b'{"t":"hello","protocol":"everlog.v1"}', b'{"t":"ping","n":1}']
    masked = (bytes((0x81, 0x80 | len(data))) + bytes(4) + data for data in frames)
    writer.write(b"".join(masked))
    async with asyncio.timeout(5):
        got = b""
        while b'"pong"' not in got:
            got += await reader.read(4096)
    assert b'"welcome"' in got
    writer.transport.abort()


async def test_a_silent_handshake_does_not_hold_the_server(service: Service) -> None:
    port = int(re.search(r":(\d+)$", service.url)[1])  # type: ignore[index]
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /ws HTTP/1.1\r\nHost: x")
    await writer.drain()
    assert (await http(f"{service.url}/healthz")).status == 200
    writer.close()


async def test_thread_of_a_vanished_client_is_let_go(service: Service) -> None:
    thread = uuid7()
    async with raw(service.url) as client:
        await client.send({"t": "open", "thread": thread})
        await client.recv()
        assert len(service.hub.open) == 1
        client.socket.transport.abort()
    for _ in range(500):
        if not service.hub.open:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the server still holds the socket")

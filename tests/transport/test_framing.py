"""What is no HTTP, or never ends, costs a connection and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from app.transport import heads
from app.transport.openai import api
from app.transport.server import Service
from tests.transport.serving import http

POST = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n"


async def sent(service: Service, *pieces: bytes, seconds: float = 5) -> bytes:
    """Send bytes; returns what comes until the connection is closed, nothing if it is cut."""
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(seconds):
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
            with contextlib.suppress(ConnectionError):
                return await reader.read()
            return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff\x13\x37" * 64 + b"\r\n\r\n",
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x00\xc8\x01\x00\xc4\x03\x03" + bytes(64),
        b"BREW /v1/models HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\n\r\n",
        POST + b"content-length: x\r\n\r\n",
        POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n\r\n",
        GET + b"x: a\x00b\r\n\r\n",
        GET + b"x: a\r\n b\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_malformed_is_refused(service: Service, data: bytes) -> None:
    assert (await sent(service, data)).startswith(b"HTTP/1.1 400 ")


async def test_random_bytes_and_half_requests(service: Service) -> None:
    whole = POST + b'content-length: 15\r\n\r\n{"prompt": "x"}'
    draw = random.Random(1)
    for _ in range(60):
        data = bytearray(whole[: draw.randrange(len(whole))])
        for _ in range(draw.randrange(4)):
            data.insert(draw.randrange(len(data) + 1), draw.randrange(256))
        with contextlib.suppress(TimeoutError):
            answer = await sent(service, bytes(data), seconds=0.02)
            assert not answer.startswith(b"HTTP/1.1 5")
    assert (await http(service.url + "/readyz")).status == 200


async def test_a_head_that_never_ends(service: Service) -> None:
    lines = (b"x%d: %b\r\n" % (n, b"y" * 1000) for n in range(1000))
    answer = await sent(service, GET, *lines)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")


async def test_a_head_that_does_not_come(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEAD_SECONDS", 0.3)
    whole = GET + b"\r\n"
    slow = [sent(service, *([piece] if piece else [])) for piece in (b"", GET[:9], whole + GET)]
    others = [http(service.url + "/version") for _ in range(5)]
    nothing, half, second, *rest = await asyncio.gather(*slow, *others)
    assert nothing.startswith(b"HTTP/1.1 408 ") and half.startswith(b"HTTP/1.1 408 ")  # type: ignore[union-attr]
    assert second.count(b"HTTP/1.1 200 ") == 1 and second.count(b"HTTP/1.1 408 ") == 1  # type: ignore[union-attr]
    assert [answer.status for answer in rest] == [200] * 5  # type: ignore[union-attr]


async def test_a_body_that_does_not_come(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BODY_SECONDS", 0.2)
    head = POST + b"content-length: 100\r\nconnection: close\r\n\r\n{"
    answer = await sent(service, head)
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"code":"timeout"' in answer

"""Ask one question, three ways: of a bare core, over the WebSocket, over HTTP with SSE.

The clients do as little as they can, since they share the machine with what they measure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection

from app.config import ChatConfig
from app.engine.frames import Add, Failed, Step
from app.engine.supervisor import CoreProcess
from app.events.catalogue import ChatMessage, SamplingParams
from app.events.ids import uuid7

__all__ = ["bare", "over_http", "over_socket"]


async def bare(core: CoreProcess, questions: Sequence[str], params: dict[str, Any]) -> float:
    """Have a core answer all questions at once; returns the seconds it took."""
    open_requests = set()
    start = time.perf_counter()
    for question in questions:
        request = uuid7()
        open_requests.add(request)
        messages = msgspec.convert(_messages(question), list[ChatMessage])
        core.send(Add(request=request, params=SamplingParams(**params), messages=messages))
    while open_requests:
        for frame in await core.receive():
            if isinstance(frame, Failed):
                raise RuntimeError(frame.message)
            if isinstance(frame, Step):
                open_requests -= {output.request for output in frame.outputs if output.reason}
    return time.perf_counter() - start


async def over_socket(who: ClientConnection, question: str, params: dict[str, Any]) -> float:
    """Ask in a new thread and read to the end; returns the time to first token in seconds."""
    thread = uuid7()
    await who.send(msgspec.json.encode({"t": "open", "thread": thread}), text=True)
    post = {"t": "post", "id": uuid7(), "thread": thread, "content": question, "params": params}
    start = time.perf_counter()
    first = 0.0
    await who.send(msgspec.json.encode(post), text=True)
    while True:
        frame = await who.recv(decode=False)
        if not first and b'"tokens.generated"' in frame:
            first = time.perf_counter() - start
        if b'"request.finished"' in frame:
            break
        if b'"request.failed"' in frame:
            raise RuntimeError(frame.decode())
    await who.send(msgspec.json.encode({"t": "close", "thread": thread}), text=True)
    return first


async def over_http(port: int, model: str, question: str, params: dict[str, Any]) -> float:
    """Ask ``/v1/chat/completions`` and read to the end; returns the time to first token."""
    body = msgspec.json.encode(
        {"model": model, "messages": _messages(question), "stream": True, **params}
    )
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    first, answer = 0.0, bytearray()
    while data := await reader.read(65536):
        answer += data
        if not first and b'"content":"' in answer.replace(b'"content":""', b""):
            first = time.perf_counter() - start
    writer.close()
    if b"data: [DONE]" not in answer:
        raise RuntimeError(answer[-1000:].decode())
    return first


def _messages(question: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": ChatConfig().system_prompt},
        {"role": "user", "content": question},
    ]

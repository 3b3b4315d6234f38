"""Frames between host and core: MessagePack, each behind its length in 4 bytes, big-endian.

The codec is pure; `Channel` is the core's end (a blocking socket), `StreamChannel` the host's end
(asyncio streams, which the caller opens: nothing here imports an event loop).
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from app.engine.frames import FromCore, ToCore
from app.errors import InputError

if TYPE_CHECKING:
    import asyncio

__all__ = ["MAX_FRAME", "Channel", "Decoder", "StreamChannel", "encode", "packed"]

MAX_FRAME = 64 * 1024 * 1024
"""Bytes of the largest frame; a longer one means that the two sides lost step."""

_HEAD = 4
_encoder = msgspec.msgpack.Encoder()

T = TypeVar("T")


def encode(frames: Iterable[msgspec.Struct]) -> bytearray:
    """Encode frames, one behind the other."""
    out = bytearray()
    for frame in frames:
        start = len(out)
        _encoder.encode_into(frame, out, start + _HEAD)
        out[start : start + _HEAD] = (len(out) - start - _HEAD).to_bytes(_HEAD)
    return out


def packed(frame: ToCore) -> bytearray:
    """Encode a frame whose content others chose.

    Raises:
        InputError: It cannot be sent.

    """
    try:
        data = encode((frame,))
    except (OverflowError, RecursionError) as error:
        raise InputError(f"it cannot be sent to the engine: {error}") from None
    if len(data) - _HEAD > MAX_FRAME:
        raise InputError(f"it is longer than {MAX_FRAME} bytes")
    return data


class Decoder(Generic[T]):
    """Cut a stream of bytes into frames of a type.

    Raises:
        ValueError: From `feed`, on a frame that is too long or not of the type.

    """

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[T]:
        """Take in bytes as they came; returns the frames they complete."""
        buffer = self._buffer
        buffer += data
        frames: list[T] = []
        start = 0
        while len(buffer) - start >= _HEAD:
            size = int.from_bytes(buffer[start : start + _HEAD])
            if size > MAX_FRAME:
                raise ValueError(f"frame of {size} bytes; at most {MAX_FRAME} are allowed")
            end = start + _HEAD + size
            if end > len(buffer):
                break
            frames.append(
                self._decoder.decode(memoryview(buffer)[start + _HEAD : end].toreadonly())
            )
            start = end
        if start:
            del buffer[:start]
        return frames


class Channel:
    """The core's end. An empty list from `receive` means that the host is gone."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._decoder: Decoder[ToCore] = Decoder(ToCore)
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self.closed = False

    def send(self, frames: Iterable[msgspec.Struct]) -> None:
        """Send frames in one go; does nothing once the host is gone."""
        if self.closed:
            return
        try:
            self._socket.sendall(encode(frames))
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True

    def poll(self) -> list[ToCore]:
        """Return the frames that are here, without waiting."""
        frames: list[ToCore] = []
        while not self.closed and self._readable.poll(0):
            frames += self._read()
        return frames

    def receive(self) -> list[ToCore]:
        """Wait for frames; empty only when `closed`."""
        frames: list[ToCore] = []
        while not frames and not self.closed:
            frames = self._read()
        return frames

    def _read(self) -> list[ToCore]:
        try:
            data = self._socket.recv(1 << 18)
        except ConnectionResetError:
            data = b""
        if not data:
            self.closed = True
        return self._decoder.feed(data)


class StreamChannel:
    """The host's end, over asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder: Decoder[FromCore] = Decoder(FromCore)

    def send(self, frame: ToCore) -> None:
        """Encode and queue a frame."""
        self.write(encode((frame,)))

    def write(self, data: bytearray) -> None:
        """Queue encoded frames; lost without an error if the core is gone (the reader notices)."""
        if not self._writer.is_closing():
            self._writer.write(data)

    async def receive(self) -> list[FromCore]:
        """Wait for frames; an empty list means that the core is gone."""
        frames: list[FromCore] = []
        while not frames:
            try:
                data = await self._reader.read(1 << 18)
            except ConnectionError:
                data = b""
            if not data:
                return []
            frames = self._decoder.feed(data)
        return frames

    async def aclose(self) -> None:
        """Close the socket; the core, if it lives, ends."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

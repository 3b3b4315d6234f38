"""Heads of HTTP requests come whole, short and soon, or their connection is closed.

Nothing behind this sees a request before its head has ended, so whoever sends one byte a minute, or
never ends, would hold a connection, and with endless headers memory, for nothing.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["HEAD_SECONDS", "MAX_HEAD", "Heads"]

HEAD_SECONDS = 30.0
"""Longest time from a head's first byte (or the connection) to its end."""
MAX_HEAD = 65_536
"""Bytes at which a head is too long; it may pass if it ends in the piece that reaches them."""


class Heads(HttpToolsProtocol):
    """uvicorn's HTTP, with limits for heads."""

    _timer: asyncio.TimerHandle | None = None
    _inside = True  # a head has not ended, or not begun
    _seen = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head must come."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more comes."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Look at the head that these bytes belong to, if they do."""
        if self._inside:
            self._seen += len(data)
        super().data_received(data)
        if self._inside and self._seen > MAX_HEAD:
            self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """A head begins."""
        if self._timer is None:
            self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._stop()
        self._inside, self._seen = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What follows is the next head."""
        self._inside = True
        super().on_message_complete()

    def _wait(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._refuse, b"408 Request Timeout")

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: bytes) -> None:
        self._stop()
        self._inside = False
        if not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % status
            )
            self.transport.close()

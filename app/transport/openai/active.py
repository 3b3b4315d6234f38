"""HTTP requests that wait for the engine, and how they end when the server does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from app.transport.openai.errors import ApiError

__all__ = ["Active"]


class Active:
    """Those that are under way in this process."""

    def __init__(self) -> None:
        self._over = asyncio.Event()  # what is left must end now
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._count = 0

    @property
    def over(self) -> asyncio.Event:
        """Set when what is under way must end now."""
        return self._over

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    def admit(self) -> None:
        """Go on if the server does.

        Raises:
            ApiError: 503: it takes nothing new.

        """
        if self._draining:
            raise shutting_down()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Be one of them for the time of the block."""
        self._count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Take nothing new; give what is under way some time, then end it."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        self._over.set()
        await self._idle.wait()


def shutting_down() -> ApiError:
    """What clients are told then."""
    return ApiError(503, "the server is shutting down", code="shutting_down", retry=1)

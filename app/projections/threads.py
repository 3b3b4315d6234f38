"""Calls into worker threads that cancellation cannot cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """Run a function in a thread and return what it returns.

    A cancelled caller gets its cancellation when the function has ended, not before: so it never
    closes or uses a connection that a thread is still in the middle of a transaction with.
    """
    work = asyncio.get_running_loop().run_in_executor(None, partial(function, *args))
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):  # else the scope would cancel again and again
        while not work.done():
            try:
                await asyncio.wait((work,))
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        work.exception()  # seen, so that the loop does not complain about it
        raise cancelled
    return work.result()

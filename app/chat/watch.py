"""Reload a chat author's file when it is saved."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio.to_thread
from watchfiles import PythonFilter, awatch

from app.chat.errors import LoadError
from app.chat.hooks import ChatApp
from app.chat.loader import load

__all__ = ["watch"]

#: Milliseconds without a further change before a reload; an editor's save is several changes.
STEP_MS = 200


async def watch(
    path: Path,
    *,
    reloaded: Callable[[ChatApp], Awaitable[None]],
    failed: Callable[[LoadError], Awaitable[None]],
) -> None:
    """Load ``path`` again whenever a Python file in its folder changes; runs until cancelled.

    Args:
        path: The author's file.
        reloaded: Gets the new app, as ``Runtime.reload`` does.
        failed: Gets the error when it cannot be loaded; the old app stays in use.

    """
    changes = awatch(_folder(path), watch_filter=PythonFilter(), debounce=4 * STEP_MS, step=STEP_MS)
    async for _ in changes:
        try:
            # In a thread: an import may take seconds, and chats go on meanwhile.
            app = await anyio.to_thread.run_sync(load, path)
        except LoadError as error:
            await failed(error)
        else:
            await reloaded(app)


def _folder(path: Path) -> Path:
    return path.resolve().parent

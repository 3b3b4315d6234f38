"""How a process comes to its end: by a signal, or by an error."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator

__all__ = ["signals"]


@contextlib.contextmanager
def signals(stopping: Callable[[], bool], stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` on the first SIGTERM or SIGINT; end at once on one while it is ``stopping``."""
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stopping():
            os._exit(128 + number)
        stop()

    taken = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            loop.add_signal_handler(number, on_signal, number)  # only the main thread may
            taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)

"""Servers as child processes, and what Linux says about them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect

from app.transport.protocol import PROTOCOL

__all__ = ["client", "cpu_seconds", "everlog", "resident"]

TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 120


@contextlib.contextmanager
def everlog(
    folder: Path, settings: dict[str, str], *arguments: str, database: str = ""
) -> Iterator[tuple[int, int]]:
    """Run ``everlog serve``; yields its port and process id once it is ready.

    Its log is ``database``, by default the file ``bench.db`` in ``folder``.
    """
    port = _free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("EVERLOG_S")}
    env |= {"EVERLOG_LOG__LEVEL": "error", **settings}
    command = [sys.executable, "-m", "app", "serve", *arguments, "--port", str(port)]
    command += ["--database", database or str(folder / "bench.db")]
    child = subprocess.Popen(command, env=env)
    try:
        _await_ready(child, port)
        yield port, child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _await_ready(child: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the server did not become ready")


@contextlib.asynccontextmanager
async def client(url: str, *, hello: bool = True) -> AsyncIterator[ClientConnection]:
    """Connect as cheaply as the library allows, and shake hands."""
    async with connect(url, compression=None, max_size=None, proxy=None) as connection:
        if hello:
            await connection.send(f'{{"t":"hello","protocol":"{PROTOCOL}","token":null}}')
            await connection.recv()
        yield connection


def cpu_seconds(pid: int) -> float:
    """Return the processor time a process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident(pid: int, *, peak: bool = False) -> int:
    """Return the bytes of memory a process has, or had at most."""
    name = "VmHWM" if peak else "VmRSS"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} for process {pid}")

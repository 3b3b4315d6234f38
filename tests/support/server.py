"""A real server process, started as a user would start it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Process:
    """An ``everlog`` command in a process of its own; what it prints goes to a file."""

    def __init__(self, output: Path, *command: str, env: dict[str, str] | None = None) -> None:
        self.command = command
        ours = {n: v for n, v in os.environ.items() if not n.startswith("EVERLOG_TEST_")}
        self.env = {**ours, "EVERLOG_LOG__FORMAT": "text", **(env or {})}
        self.output = output
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def spawn(self) -> None:
        """Start it; nobody waits for anything."""
        command = [sys.executable, "-m", "app", *self.command]
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=self.env, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )

    def send(self, sig: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(sig)

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        self.send(sig)
        assert self.process is not None
        return self.process.wait(30)

    def gone(self) -> None:
        """Make sure that it is gone, also if it was stopped."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)

    def log(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def core_pid(self) -> int | None:
        """Pid of its engine core, if one runs (Linux)."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for pid in children:
            with contextlib.suppress(OSError):
                if b"app.engine.core" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        return None


class Worker(Process):
    """`everlog worker` for a log on Postgres."""

    def __init__(
        self, folder: Path, url: str, name: str, *, env: dict[str, str] | None = None
    ) -> None:
        command = ("worker", "--name", name, "--database", url)
        super().__init__(folder / f"{name}.out", *command, env=env)
        self.name = name

    def start(self, *, timeout: float = 90) -> None:
        """Start it and wait until its engine is ready."""
        before = self.log().count("ready in")
        self.spawn()
        deadline = time.monotonic() + timeout
        while self.log().count("ready in") == before:
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} did not become ready:\n{self.log()}")
            time.sleep(0.05)


class Server(Process):
    """`everlog serve`, on a port that stays the same over restarts.

    ``database`` is a SQLite file, or a URL with ``output`` for what it prints.
    """

    def __init__(
        self,
        database: Path | str,
        *args: str,
        port: int | None = None,
        env: dict[str, str] | None = None,
        output: Path | None = None,
    ) -> None:
        self.database = Path(database)
        self.port = port or free_port()
        url = f"sqlite:///{database}" if isinstance(database, Path) else database
        command = ("serve", *args, "--port", str(self.port), "--database", url)
        super().__init__(output or self.database.with_suffix(".out"), *command, env=env)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, ready: bool = True, timeout: float = 60) -> None:
        """Start it and wait until it is ready (`ready=False`: until it listens)."""
        self.spawn()
        assert self.process is not None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"server ended with {self.process.returncode}:\n{self.log()}")
            if self.get("/readyz" if ready else "/healthz") == 200:
                return
            time.sleep(0.05)
        raise AssertionError(f"server not ready in {timeout} s:\n{self.log()}")

    def get(self, path: str) -> int | None:
        """Status of a GET, or None while nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as response:
                status: int = response.status
                return status
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return None


@contextlib.contextmanager
def running(database: Path, *args: str, **options: object) -> Iterator[Server]:
    """A started server that is gone afterwards, however the test ends."""
    server = Server(database, *args, **options)  # type: ignore[arg-type]
    try:
        server.start()
        yield server
    finally:
        server.gone()

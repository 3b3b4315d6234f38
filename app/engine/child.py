"""The core as a child of a plain script: the same process and frames, without an event loop.

`app.engine.supervisor` is what a service uses; it restarts a core that died. Here that is an error:
nothing was committed that another core could go on from.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable

import msgspec

from app.engine.channel import Decoder, encode
from app.engine.frames import CoreConfig, Fatal, FromCore, Ready, Stop, ToCore
from app.engine.supervisor import describe, environment
from app.errors import EverlogError, StartupError

__all__ = ["Child", "CoreDied"]

_GRACE = 5.0
"""Seconds that a core has for its end, before it is killed."""


class CoreDied(EverlogError):
    """The core process ended in the middle of its work."""


class Child:
    """A running core and the socket to it. Ends by `close`, or with this process.

    One thread at a time. Nothing blocks on sending: what the socket does not take at once goes out
    while `receive` waits, so that neither side ever waits for the other to read.

    Attributes:
        ready: What the core loaded.

    Raises:
        StartupError: It ended before its model was loaded; with its own message if it had one.

    """

    def __init__(self, config: CoreConfig) -> None:
        self._socket, theirs = socket.socketpair()
        try:
            self._process = _spawn(config, theirs)
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._decoder: Decoder[FromCore] = Decoder(FromCore)
        self._out = bytearray()
        self._fatal: Fatal | None = None
        self._early: list[FromCore] = []
        try:
            self.ready = self._wait_ready()
        except BaseException:
            self.close(grace=0)
            raise

    @property
    def closed(self) -> bool:
        """Whether it was closed, or died."""
        return self._socket.fileno() < 0

    def send(self, frames: Iterable[ToCore]) -> None:
        """Queue frames for the core."""
        self._out += encode(frames)

    def flush(self) -> None:
        """Send of what is queued as much as goes without waiting."""
        if self._out and not self.closed:
            self._write()

    def receive(self) -> list[FromCore]:
        """Send what is queued, and wait for frames; there is at least one.

        Raises:
            CoreDied: The process ended, or was closed.

        """
        frames, self._early = self._early, []
        while not frames:
            if self.closed:
                raise CoreDied("the engine is closed")
            self._poll.modify(self._socket, select.POLLIN | (select.POLLOUT if self._out else 0))
            for _, events in self._poll.poll():
                if events & select.POLLOUT:
                    self._write()
                if events & ~select.POLLOUT:
                    frames += self._read()
        return frames

    def close(self, *, grace: float = _GRACE) -> None:
        """End the core; it may be closed already."""
        if self.closed:
            return
        with contextlib.suppress(OSError):
            self._socket.send(encode([Stop()]))
        self._socket.close()
        self._end(grace)

    def _write(self) -> None:
        try:
            del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:  # reading finds out why
            self._out.clear()

    def _read(self) -> list[FromCore]:
        try:
            data = self._socket.recv(1 << 18)
        except BlockingIOError:
            return []
        except ConnectionError:
            data = b""
        if not data:
            self._socket.close()
            status = self._end(_GRACE)
            raise CoreDied(self._fatal.message if self._fatal else describe(status))
        frames = self._decoder.feed(data)
        for frame in frames:
            if isinstance(frame, Fatal):
                self._fatal = frame
        return frames

    def _end(self, grace: float) -> int:
        try:
            return self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self._process.wait()

    def _wait_ready(self) -> Ready:
        try:
            while True:
                frames = self.receive()
                if isinstance(frames[0], Ready):
                    self._early = frames[1:]
                    return frames[0]
        except CoreDied as error:
            hint = self._fatal.hint if self._fatal else "see its messages above"
            raise StartupError(f"The engine did not start: {error.message}", hint=hint) from None


def _spawn(config: CoreConfig, theirs: socket.socket) -> subprocess.Popen[bytes]:
    """Start a core in a session of its own, so that Ctrl-C is the script's alone.

    On Linux the kernel ends a core with the thread that started it. So that is one which lives as
    long as the core does, whatever becomes of the caller's.
    """
    started: list[subprocess.Popen[bytes] | BaseException] = []
    done = threading.Event()

    def start() -> None:
        command = [sys.executable, "-P", "-m", "app.engine.core", str(theirs.fileno())]
        try:
            process = subprocess.Popen(
                [*command, msgspec.json.encode(config).decode()],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment(),
                start_new_session=True,
            )
            started.append(process)
        except BaseException as error:
            started.append(error)
            return
        finally:
            done.set()
        with contextlib.suppress(ChildProcessError):  # somebody waited for it already
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    threading.Thread(target=start, name="everlog-core", daemon=True).start()
    done.wait()
    if isinstance(started[0], BaseException):
        raise started[0]
    return started[0]

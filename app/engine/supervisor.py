"""The core as a child process: start it, learn why it ended, and how long to wait then."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import anyio
import msgspec

import app
from app.engine.channel import StreamChannel
from app.engine.frames import CoreConfig, Fatal, FromCore, Ready, Stop, ToCore
from app.errors import StartupError

__all__ = ["Backoff", "CoreProcess", "describe", "environment"]


class CoreProcess:
    """A running core. Made by `launch`; ends by `stop`, `kill`, or by itself."""

    def __init__(self, process: asyncio.subprocess.Process, channel: StreamChannel) -> None:
        self._process = process
        self._channel = channel
        self._fatal: Fatal | None = None
        self._early: list[FromCore] = []
        self.ready: Ready

    @classmethod
    async def launch(cls, config: CoreConfig) -> CoreProcess:
        """Start a core and wait until its model is loaded.

        Raises:
            StartupError: It ended before that; with the core's own message if it had one.

        """
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "app.engine.core"),
                *(str(theirs.fileno()), msgspec.json.encode(config).decode()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment(),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        core = cls(process, StreamChannel(reader, writer))
        try:
            await core._wait_ready()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await core.kill()
            raise
        return core

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.returncode is None

    def send(self, frame: ToCore) -> None:
        """Queue a frame for the core."""
        self._channel.send(frame)

    def write(self, data: bytearray) -> None:
        """Queue frames for the core that are encoded already."""
        self._channel.write(data)

    async def receive(self) -> list[FromCore]:
        """Wait for frames; an empty list means that the core ended or is about to."""
        frames, self._early = self._early or await self._channel.receive(), []
        for frame in frames:
            if isinstance(frame, Fatal):
                self._fatal = frame
        return frames

    async def ended(self, grace: float = 5.0) -> str:
        """Wait for the end of a core that closed its channel; returns the reason in words."""
        try:
            async with asyncio.timeout(grace):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
        status = await self._process.wait()
        await self._channel.aclose()
        if self._fatal is not None:
            return self._fatal.message
        return describe(status)

    async def stop(self, grace: float = 5.0) -> None:
        """Ask the core to end, and make it end if it does not."""
        self.send(Stop())
        await self.ended(grace)

    async def kill(self) -> None:
        """End the core now."""
        if self.alive:
            self._process.kill()
        await self.ended()

    async def _wait_ready(self) -> None:
        frames = await self.receive()
        if frames and isinstance(frames[0], Ready):
            self.ready = frames[0]
            self._early = frames[1:]
            return
        reason = await self.ended()
        hint = self._fatal.hint if self._fatal else "see its messages above"
        raise StartupError(f"The engine did not start: {reason}", hint=hint)


class Backoff:
    """How long to wait before a core is started again: at once, then ever longer.

    Args:
        first: Seconds before the second start in a row.
        most: Longest wait in seconds.

    """

    def __init__(self, *, first: float = 0.5, most: float = 30.0) -> None:
        self._first = first
        self._most = most
        self._failures = 0

    def reset(self) -> None:
        """It worked: the next failure is the first again."""
        self._failures = 0

    def next(self) -> float:
        """Count a failure; returns the seconds to wait."""
        self._failures += 1
        if self._failures == 1:
            return 0.0
        return min(self._most, self._first * 2.0 ** min(self._failures - 2, 30))


def describe(status: int) -> str:
    """Say in words how a process ended; ``status`` as in `subprocess.Popen.returncode`."""
    if status >= 0:
        return f"the engine process exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of memory?)" if -status == signal.SIGKILL else ""
    return f"the engine process was killed by {name}{hint}"


def environment() -> dict[str, str]:
    """Environment of a core. It finds this very package, whatever lies in the current directory.

    Between operators OpenMP's threads spin some tens of microseconds, then sleep. Its default, to
    spin for long, is no faster alone, and on a busy machine a spinning thread keeps the one it
    waits for from running: 0.5 to 0.9 s a step where this takes 0.1 s and an idle machine 0.03 s.
    Sleeping at once (``OMP_WAIT_POLICY=PASSIVE``) costs half as much again on an idle one.
    What the environment says of either wins.
    """
    root = str(Path(app.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    waiting = {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": "3000"}
    return {**waiting, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}

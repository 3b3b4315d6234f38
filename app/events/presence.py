"""Presence: a process says to the log that it is alive, and learns who else is.

Every process that shares a log has a name. It renews it for a lease on the store's clock, several
times within each. Who does not is gone, and others take over what it had begun. So a process that
could not renew in time must not go on as if nothing had happened: `Presence.sure` waits until it
knows again where it stands.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path

from app.errors import InputError, StartupError
from app.events.ids import uuid7
from app.events.store import EventStore, StoreClosed, StoreError

__all__ = ["LEASE", "WORKER", "Presence", "check_name", "place"]

log = logging.getLogger("everlog.nodes")

LEASE = 10.0
"""Seconds a process counts as alive after it was last heard of."""

MAX_NAME = 100

WORKER = "worker:"
"""Begins the names under which engine workers beat, apart from those of nodes."""

_MARK = "#"
"""Parts a name from where its process lives, and which life it is."""


def check_name(name: str, field: str) -> str:
    """Return a name that streams can be called by.

    Raises:
        InputError: It is not one.

    """
    if not name or len(name) > MAX_NAME or any(c.isspace() or c in "/#" for c in name):
        raise InputError(
            f"{name!r} is no name: 1 to {MAX_NAME} characters without spaces, / and #", field=field
        )
    return name


def place(holding: str) -> str:
    """Name what only one process at a time can hold, such as a port of this machine.

    Who holds it knows that a process that once held it is gone. Empty where machines cannot be
    told apart.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        network = Path("/proc/self/ns/net").readlink()
    except OSError:
        return ""
    return sha256(f"{boot} {network} {holding}".encode()).hexdigest()[:16]


class Presence:
    """One process among those that share a log.

    Attributes:
        name: Its name, the same at every start and nobody else's.
        live: Names of all that are alive, as of the last beat.
        trouble: Why the last beat failed; None: it did not.

    Args:
        store: The log.
        name: See above.
        lease: Seconds it counts as alive after a beat.
        place: What `place` returned for something this process holds, or nothing.

    """

    def __init__(
        self, store: EventStore, name: str, *, lease: float = LEASE, place: str = ""
    ) -> None:
        self.name = name
        self.live: frozenset[str] = frozenset()
        self.trouble: str | None = None
        self._store = store
        self._lease = lease
        self._place = place
        self._shown = name.removeprefix(WORKER)
        self._self = _MARK.join((name, place, uuid7()))
        self._until = 0.0  # monotonic: until then nobody takes us for gone
        self._steady = 0.0  # monotonic: since then no beat was late
        self._sure = asyncio.Event()
        self._left = False
        self._beaten = asyncio.Condition()

    async def enter(self) -> None:
        """Take the name.

        A process of this name that lives in the same place is known to be gone; for one elsewhere
        a lease is waited: then it is gone too, or alive.

        Raises:
            StartupError: Another process has this name.

        """
        begun = time.monotonic()
        told = False
        while self._namesakes(await self._beat()):
            if time.monotonic() - begun > self._lease * 1.5:
                await self.leave()
                raise StartupError(
                    f"another process that is alive is called {self._shown!r} in this log",
                    hint="Stop it, or give this one a name of its own (server.node; "
                    "everlog worker --name).",
                )
            if not told:
                log.warning("waiting up to %.0f s for the last process called %s to be gone",
                            self._lease * 1.5, self._shown)  # fmt: skip
                told = True
            await asyncio.sleep(min(self._lease / 5, 1.0))
        if getattr(self._store, "exclusive", False):
            self._steady -= 2 * self._lease  # nobody else is to be waited for
        self._sure.set()

    async def run(self, regained: Callable[[], Awaitable[None]] | None = None) -> None:
        """Beat until cancelled.

        Args:
            regained: Called when the name was not renewed in time, before `sure` lets anybody
                through again: others may have taken over what was begun here.

        Raises:
            StoreClosed: The log was closed.

        """
        wait = self._lease / 3
        while True:
            await asyncio.sleep(wait)
            if self._left:
                return
            if self._late:
                self._sure.clear()
            try:
                await self._beat()
                if not self._sure.is_set():
                    if regained is not None:
                        await regained()
                    self._sure.set()
                wait = self._lease / 3
            except StoreClosed:
                raise
            except StoreError as error:
                if self.trouble is None:
                    log.warning("cannot say to the log that this process is alive: %s", error)
                self.trouble = error.message
                wait = min(1.0, self._lease / 6)
            async with self._beaten:
                self._beaten.notify_all()

    async def beat(self) -> None:
        """Wait for the next beat, even if it fails."""
        async with self._beaten:
            await self._beaten.wait()

    async def leave(self) -> None:
        """End cleanly: others need not wait for the lease."""
        self._left = True
        self._until = 0.0
        self._sure.clear()
        await self._store.leave(node=self._self)

    @property
    def nodes(self) -> frozenset[str]:
        """Names of the nodes that are alive, as of the last beat: all but engine workers."""
        return frozenset(name for name in self.live if not name.startswith(WORKER))

    @property
    def certain(self) -> bool:
        """Whether nobody can take this process for gone now."""
        return self._sure.is_set() and not self._late

    async def sure(self) -> None:
        """Wait until it is certain that nobody has taken this process for gone."""
        while not self.certain:
            self._sure.clear()
            await self._sure.wait()

    def gone(self, name: str) -> bool:
        """Whether a process of this name is known to be gone.

        After a gap in our own beats everybody has a lease to be heard of: perhaps it was the
        database that was away.
        """
        return (
            name != self.name
            and name not in self.live
            and self.certain
            and time.monotonic() - self._steady > self._lease
        )

    # ------------------------------------------------------------------------- internal

    @property
    def _late(self) -> bool:
        return time.monotonic() >= self._until

    async def _beat(self) -> frozenset[str]:
        begun = time.monotonic()
        late = begun >= self._until
        try:
            async with asyncio.timeout(self._lease / 2):
                found = await self._store.beat(node=self._self, lease=self._lease)
        except TimeoutError:
            raise StoreError("the log does not answer") from None
        if late:
            self._steady = begun
        self._until = begun + self._lease
        self.live = frozenset(entry.partition(_MARK)[0] for entry in found)
        self.trouble = None
        return found

    def _namesakes(self, found: frozenset[str]) -> list[str]:
        """Others of our name that may be alive."""
        return [
            entry
            for entry in found
            if entry.partition(_MARK)[0] == self.name and entry != self._self
            and not (self._place and entry.split(_MARK)[1:2] == [self._place])
        ]  # fmt: skip

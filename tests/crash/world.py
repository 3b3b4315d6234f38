"""Edges behind a balancer, workers and a database, and all that can happen to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from app.events.open import open_store
from tests.support.balancer import Balancer, balancing
from tests.support.postgres import Cluster
from tests.support.server import Process, Server, Worker

__all__ = ["LEASE", "World", "world"]

LEASE = 1.5
"""Seconds after which edges and workers count as gone."""

ENV = {
    "EVERLOG_SERVER__LEASE_SECONDS": str(LEASE),
    "EVERLOG_ENGINE__LEASE_SECONDS": str(LEASE),
    "EVERLOG_ENGINE__MAX_CONTEXT": "512",
    "EVERLOG_ENGINE__THREADS": "1",
    "EVERLOG_ENGINE__KV_MEMORY": str(256 << 20),
    "EVERLOG_LOG__SEAL_EVERY": "200",
}


class World:
    """What runs. Each method does harm and mends it again; at most one at a time to each process.

    Attributes:
        database: A SQLite file, or a Postgres URL.
        cores: Every engine core that was ever seen.

    """

    def __init__(
        self,
        database: Path | str,
        edges: list[Server],
        workers: list[Worker],
        front: Balancer,
        cluster: Cluster | None,
    ) -> None:
        self.database = database
        self.edges = edges
        self.workers = workers
        self.front = front
        self.cores: set[int] = set()
        self._cluster = cluster
        self._busy = {process: asyncio.Lock() for process in self.processes}
        self._running = asyncio.Event()  # the database
        self._running.set()

    @property
    def processes(self) -> list[Server | Worker]:
        """All edges and workers."""
        return [*self.edges, *self.workers]

    async def kill_edge(self, at: int, seconds: float) -> None:
        """Kill an edge; it comes back after a while."""
        await self._kill(self.edges[at % len(self.edges)], seconds)

    async def end_edge(self, at: int, seconds: float) -> None:
        """Ask an edge to end; it comes back after a while."""
        await self._kill(self.edges[at % len(self.edges)], seconds, signal.SIGTERM)

    async def freeze_edge(self, at: int, seconds: float) -> None:
        """Stop an edge for longer than its lease, then let it go on."""
        await self._freeze(self.edges[at % len(self.edges)], seconds)

    async def kill_worker(self, at: int, seconds: float) -> None:
        """Kill a worker; it comes back after a while."""
        await self._kill(self.workers[at % len(self.workers)], seconds)

    async def end_worker(self, at: int, seconds: float) -> None:
        """Ask a worker to end; it comes back after a while."""
        await self._kill(self.workers[at % len(self.workers)], seconds, signal.SIGTERM)

    async def freeze_worker(self, at: int, seconds: float) -> None:
        """Stop a worker for longer than its lease, then let it go on; its core works on."""
        await self._freeze(self.workers[at % len(self.workers)], seconds)

    async def kill_core(self, at: int, seconds: float) -> None:
        """Kill a worker's engine core; the worker starts another."""
        worker = self.workers[at % len(self.workers)]
        async with self._busy[worker]:
            self._note_core(worker)
            core = worker.core_pid()
            if core is not None:
                os.kill(core, signal.SIGKILL)
            await asyncio.sleep(seconds)

    async def crash_database(self, at: int, seconds: float) -> None:
        """Crash Postgres; it comes back after a while."""
        del at
        assert self._cluster is not None
        if not self._running.is_set():
            return
        self._running.clear()
        await asyncio.to_thread(self._cluster.stop, "immediate")
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._cluster.start, fsync="off")
        self._running.set()

    async def cut(self, at: int, seconds: float) -> None:
        """Cut all connections of all clients, now and once more."""
        del at
        self.front.cut()
        await asyncio.sleep(seconds)
        self.front.cut()

    def end(self) -> None:
        """Kill everything but the database."""
        for worker in self.workers:
            self._note_core(worker)
        for process in self.processes:
            process.gone()

    async def cores_gone(self) -> None:
        """Wait until no engine core is left without its host."""
        async with asyncio.timeout(20):
            while any(_alive(core) for core in self.cores):  # noqa: ASYNC110 - of others
                await asyncio.sleep(0.05)

    def output(self) -> str:
        """The last lines that each process printed."""
        return "\n".join(
            f"--- {process.output.name}\n" + "\n".join(process.log().splitlines()[-15:])
            for process in self.processes
        )

    # ------------------------------------------------------------------------- internal

    async def _kill(
        self, process: Server | Worker, seconds: float, sig: signal.Signals = signal.SIGKILL
    ) -> None:
        async with self._busy[process]:
            self._note_core(process)
            await asyncio.to_thread(process.kill, sig)
            await asyncio.sleep(seconds)
            await self._start(process)

    async def _start(self, process: Server | Worker) -> None:
        """Start a process; it may fail to while the database is away."""
        while True:
            await self._running.wait()
            try:
                await asyncio.to_thread(process.start)
                return
            except AssertionError:
                if self._running.is_set() and "cannot open" not in process.log()[-2000:]:
                    raise

    async def _freeze(self, process: Server | Worker, seconds: float) -> None:
        async with self._busy[process]:
            process.send(signal.SIGSTOP)
            await asyncio.sleep(LEASE * 1.3 + seconds)
            process.send(signal.SIGCONT)

    def _note_core(self, process: Process) -> None:
        with contextlib.suppress(OSError):
            core = process.core_pid()
            if core is not None:
                self.cores.add(core)


def _alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.asynccontextmanager
async def world(
    folder: Path,
    database: Path | str,
    *args: str,
    edges: int = 2,
    workers: int = 0,
    cluster: Cluster | None = None,
) -> AsyncIterator[World]:
    """Processes that are ready, and gone afterwards however the test ends.

    Args:
        folder: For what they print.
        database: A SQLite file, or a Postgres URL.
        args: Further arguments of ``everlog serve``.
        edges: How many there are.
        workers: The same of engine workers.
        cluster: The Postgres that may be harmed.

    """
    servers = [
        Server(database, *args, env=ENV, output=folder / f"edge{at}.out") for at in range(edges)
    ]
    engines = [Worker(folder, str(database), f"w{at}", env=ENV) for at in range(workers)]
    if isinstance(database, str):  # two that make the tables at once is another test's matter
        async with open_store(database):
            pass
    with balancing(*(server.port for server in servers), turns=True) as front:
        made = World(database, servers, engines, front, cluster)
        try:
            await asyncio.gather(*(asyncio.to_thread(one.start) for one in made.processes))
            yield made
        except BaseException:
            print(made.output())
            raise
        finally:
            made.end()

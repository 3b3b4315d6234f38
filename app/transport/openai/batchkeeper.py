"""The batches that this node runs: new ones, its own from before, and those of nodes that died."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from app.errors import EverlogError
from app.events.catalogue import BatchClaimed
from app.events.follow import following
from app.events.objects import Objects
from app.events.presence import Presence
from app.events.store import StoreClosed, StoreError
from app.transport.keys import Keys
from app.transport.openai.api import Api
from app.transport.openai.batchrun import Run, Taken
from app.transport.openai.library import STREAM, TYPES, Batch, Library, Shelf

__all__ = ["BatchKeeper"]

log = logging.getLogger(__name__)

MAX_RUNS = 4
"""Most batches that a node runs at once; others wait, or another node takes them."""
LOOK_SECONDS = 2.0
"""How often is looked for batches of nodes that died."""
AGAIN_SECONDS = 5.0
"""When a batch is tried again whose files or log failed."""


class BatchKeeper:
    """Claims batches, and runs them to their ends.

    Args:
        api: The server.
        shelf: Files and batches.
        objects: Where files are.
        presence: This node among others.
        keys: All keys as they are: batches of revoked ones end.

    """

    def __init__(
        self,
        api: Api,
        shelf: Shelf,
        objects: Objects,
        presence: Presence,
        *,
        keys: Callable[[], Keys],
    ) -> None:
        self._api, self._shelf, self._objects = api, shelf, objects
        self._presence = presence
        self._keys = keys
        self._runs: dict[str, tuple[Run, asyncio.Task[None]]] = {}
        self._later: dict[str, float] = {}
        self._bell = asyncio.Event()
        self._stopping = False

    async def run(self) -> None:
        """Run until cancelled or stopped.

        Raises:
            StoreClosed: The log was closed.

        """
        follower = asyncio.create_task(self._follow())
        try:
            while not self._stopping:
                self._bell.clear()
                await self._look()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._bell.wait()
        finally:
            self.stop()
            tasks = [follower, *(task for _, task in self._runs.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def stop(self) -> None:
        """Queue nothing more. What is under way goes on in the log; the next start finds it."""
        self._stopping = True
        self._bell.set()
        for _, task in self._runs.values():
            task.cancel()

    async def _follow(self) -> None:
        after = (await self._shelf.look()).version
        async for _ in following(self._shelf.store, after=after, stream=STREAM, types=TYPES):
            self._bell.set()

    async def _look(self) -> None:
        try:
            library = await self._shelf.look()
            for batch in list(library.batches.values()):
                if not batch.ended:
                    await self._see(batch)
        except StoreClosed:
            raise
        except StoreError as error:
            log.warning("cannot look for batches: %s", error)

    async def _see(self, batch: Batch) -> None:
        """Go on with a batch that has not ended, if that is for this node."""
        name = self._presence.name
        if batch.id in self._runs:
            run, task = self._runs[batch.id]
            if batch.node != name:
                task.cancel()  # we were taken for dead
            elif batch.state == "cancelling":
                await run.cancel()
            elif self._revoked(batch):
                await run.revoke()
            return
        if len(self._runs) >= MAX_RUNS or time.monotonic() < self._later.get(batch.id, 0.0):
            return
        if self._stopping or not self._presence.certain or not self._free(batch):
            return
        if batch.node != name:
            library = await self._shelf.change(lambda library: self._claims(library, batch.id))
            batch = library.batches[batch.id]
            if batch.node != name or batch.ended:
                return
        limit = self._api.source.config.api.batch_requests
        run = Run(self._api, self._shelf, self._objects, batch, node=name, limit=limit)
        if self._revoked(batch):
            await run.revoke()
        self._runs[batch.id] = run, asyncio.create_task(self._carry(run))

    def _free(self, batch: Batch) -> bool:
        node = batch.node
        return node in (None, self._presence.name) or self._presence.gone(node or "")

    def _revoked(self, batch: Batch) -> bool:
        """Whether whoever began it may do nothing any more."""
        key = self._keys().acting(batch.owner, (batch.times["validating"] + 1) * 10**9)
        return key is not None and key.revoked is not None

    def _claims(self, library: Library, id: str) -> list[BatchClaimed]:
        batch = library.batches[id]
        if batch.ended or batch.node == self._presence.name or not self._free(batch):
            return []
        return [BatchClaimed(batch=id, node=self._presence.name)]

    async def _carry(self, run: Run) -> None:
        """Run a batch; whatever happens is the batch's trouble, not ours."""
        id = run.batch.id
        try:
            await run.run()
            self._later.pop(id, None)
        except (Taken, StoreClosed):
            pass
        except Exception as error:
            self._later[id] = time.monotonic() + AGAIN_SECONDS
            known = isinstance(error, EverlogError)
            log.error("batch %s stands still: %s", id, error, exc_info=None if known else error)
        finally:
            del self._runs[id]
            self._bell.set()

"""What is stored but not yet published is not yet there."""

from __future__ import annotations

import asyncio

from app.events.envelope import Event
from app.events.ledger import Batch
from app.events.ledgerstore import LedgerStore
from app.events.memory import MemoryBackend
from tests.contract.support import must, notes


class SlowBackend(MemoryBackend):
    """Rows can be seen some time before the commit returns, as readers of a database do."""

    async def write(self, batch: Batch) -> None:
        await super().write(batch)
        await asyncio.sleep(0.02)

    async def version(self, stream: str) -> int:
        await asyncio.sleep(0.01)
        return await super().version(stream)


async def test_a_position_looked_up_during_a_commit() -> None:
    """A follower must not take a stored version for one that memory can already serve."""
    store = LedgerStore(SlowBackend())
    await store.start()
    await must(store, notes("thread/a", "1"))
    store._ledger._streams.clear()  # as when many other streams were written since
    append = asyncio.create_task(store.append(notes("thread/a", "2")))
    seen: list[Event] = []
    async for batch in store.follow(stream="thread/a"):
        seen += batch
        if len(seen) == 2:
            break
    assert [event.version for event in seen] == [1, 2]
    await append
    await store.aclose()

"""Logs to copy, and what must be equal afterwards."""

from __future__ import annotations

import random
from typing import Any

from app.events.envelope import NewEvent
from app.events.logstore import LogStore
from app.events.seal import head, seal_now
from app.events.store import Append, EventStore, Fence, Lease
from app.events.verify import verify
from tests.contract.support import enqueue, life, notes

AWKWARD = [b'{"a": [1.50,2e3]}', b" {}", b"not json", b"", b"\xff\x00", b"null"]


async def fill(store: LogStore, seed: int, steps: int) -> None:
    """Write a random history: notes, requests in all states, odd payloads, seals."""
    rng = random.Random(seed)
    for step in range(steps):
        stream = f"thread/{rng.randrange(4)}"
        kind = rng.choice(("note", "note", "request", "work", "odd", "seal"))
        if kind == "note":
            command = f"{seed}-{step}" if rng.random() < 0.5 else None
            titles = [str(step)] * rng.randrange(1, 4)
            await store.append(notes(stream, *titles, command=command))
        elif kind == "request":
            await enqueue(store, f"r{seed}-{step}", stream=stream, run="n", priority=step % 3)
        elif kind == "odd":
            event = NewEvent(type="odd.one", schema=4, data=rng.choice(AWKWARD), actor="user:ü")
            await store.append(Append(stream="user/ü", events=[event]))
        elif kind == "seal":
            await seal_now(store)
        else:
            await _work(store, rng)


async def _work(store: EventStore, rng: random.Random) -> None:
    for claimed in await store.claim(worker=f"w{rng.randrange(2)}", limit=2, lease=1e6):
        ends = rng.choice((None, "request.finished", "request.failed", "request.preempted"))
        for name in ("request.started", ends):
            if name is not None:
                fence = Fence(claimed.request, claimed.epoch)
                event = life(name, claimed.request, claimed.epoch)
                done = Append(stream=claimed.stream, events=[event], fence=fence)
                await store.append(done)
    if rng.random() < 0.2:
        await store.expire(worker="w0", reason="drain")


async def same(source: LogStore, target: LogStore) -> None:
    """Both logs are equal: every column, the queue, the root; and the target verifies."""
    end = await source.head()
    assert await target.head() == end
    assert await _rows(target, end) == await _rows(source, end)
    assert await head(target) == await head(source)  # the incarnation too
    assert _queue(await target.leases(open_only=False)) == _queue(
        await source.leases(open_only=False)
    )
    assert await target.commands() == await source.commands()
    report = await verify(target, expected=await head(source))
    assert report.ok, report.problems


async def _rows(store: LogStore, end: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < end:
        found += await store.rows(after=len(found), limit=end - len(found))
    return found


def _queue(leases: list[Lease]) -> list[tuple[str, str, str, int, str | None]]:
    """What moves: all but the time at which a lease ends."""
    return [(row.request, row.stream, row.state, row.epoch, row.worker) for row in leases]

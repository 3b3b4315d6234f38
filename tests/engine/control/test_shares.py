"""A host whose batch is small: who goes first in the log and in the engine, and what is told."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from app.engine.keeper import keep_queue
from app.events import codec
from app.events.catalogue import RequestFailed, RequestPreempted, RequestQueued, RequestStarted
from app.events.catalogue import SamplingParams as Params
from app.events.memory import MemoryStore
from app.events.store import Append
from tests.engine.control.lab import Result, serving


def started(result: Result) -> RequestStarted:
    return next(p for e in result.events if isinstance(p := codec.decode(e), RequestStarted))


def order(*results: Result) -> list[int]:
    """Places of the results in the order in which they began."""
    begun = [next(e.seq for e in r.events if e.type == "request.started") for r in results]
    return sorted(range(len(begun)), key=begun.__getitem__)


async def test_urgent_ones_and_other_tenants_do_not_wait_behind_a_crowd(model_path: Path) -> None:
    async with (
        MemoryStore() as store,
        serving(store, str(model_path), max_batch=1, max_context=256, prefix_scope="tenant") as lab,
    ):
        crowd = [await lab.ask(ignore_eos=True, max_tokens=24, tenant="crowd") for _ in range(6)]
        await lab.streaming(crowd[0])
        other = await lab.ask(max_tokens=4, tenant="other")
        urgent = await lab.ask(max_tokens=4, priority=5, tenant="crowd")
        results = [await lab.result(r) for r in (*crowd, other, urgent)]
    places = order(*results)
    assert places.index(7) < places.index(1), "the urgent one was claimed by a full host"
    assert places.index(6) < places.index(3), "and the other tenant's before the crowd's"
    reasons = [
        p.reason for e in results[0].events if isinstance(p := codec.decode(e), RequestPreempted)
    ]
    assert reasons == ["a request of priority 5 takes its place in the batch of 1"]
    assert started(results[7]).waited_for == ["room"]
    assert "room" in started(results[5]).waited_for
    assert started(results[5]).cached_tokens > 0 == started(results[6]).cached_tokens
    assert results[5].tokens == results[0].tokens, "whatever was preempted on the way"


async def test_an_overdue_request_fails_once_however_many_look_after_it() -> None:
    async with MemoryStore() as store:
        keepers = [asyncio.create_task(keep_queue(store, every=0.1)) for _ in range(3)]
        try:
            deadline = time.time_ns() + 200_000_000
            queued = RequestQueued(request="r", params=Params(seed=1), text="x", deadline=deadline)
            await store.append(Append(stream="request/r", events=[codec.new(queued, request="r")]))
            async with asyncio.timeout(10):
                await store.wait(after=1, stream="request/r")
            await asyncio.sleep(0.3)
            events = await store.fetch(stream="request/r")
            assert [event.type for event in events] == ["request.queued", "request.failed"]
            failed = codec.decode(events[-1])
            assert isinstance(failed, RequestFailed) and failed.code == "timeout"
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)

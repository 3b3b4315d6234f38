"""The request queue: claims, fences, leases, and the one table of transitions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.events.codec import decode
from app.events.lifecycle import FENCED, TERMINAL, TRANSITIONS
from app.events.store import (
    Append,
    Appended,
    Closed,
    EventStore,
    Fence,
    Fenced,
    Illegal,
    Lease,
    Order,
)
from tests.contract.conftest import PERSISTENT, Open
from tests.contract.support import Clock, enqueue, life, must, notes, queued, write

#: How to bring a request into each state: events to write after the claim.
PATHS: dict[str, list[str]] = {
    "claimed": [],
    "running": ["request.started"],
    "preempted": ["request.started", "request.preempted"],
    "finished": ["request.started", "request.finished"],
    "failed": ["request.failed"],
    "cancelled": ["request.cancelled"],
}


async def bring_to(store: EventStore, request: str, state: str) -> None:
    await enqueue(store, request)
    if state == "queued":
        return
    await store.claim(worker="w", limit=1, lease=10)
    for event_type in PATHS[state]:
        assert isinstance(await write(store, event_type, request, 1), Appended)


async def test_a_claim_raises_the_epoch_and_is_an_event(store: EventStore, clock: Clock) -> None:
    await enqueue(store, "r", run="run-1")
    [claimed] = await store.claim(worker="w", limit=5, lease=10)
    assert (claimed.request, claimed.stream, claimed.epoch) == ("r", "thread/a", 1)
    assert claimed.queued.type == "request.queued"
    event = (await store.fetch())[-1]
    assert (event.type, event.request, event.run, event.actor, event.cause) == (
        "request.claimed",
        "r",
        "run-1",
        "engine:w",
        "1",
    )
    payload = decode(event)
    assert (payload.epoch, payload.worker) == (1, "w")  # type: ignore[union-attr]
    assert await store.leases() == [
        Lease("r", "thread/a", "claimed", 1, "w", clock.now + 10 * 10**9)
    ]
    assert await store.claim(worker="v", limit=5, lease=10) == []


async def test_claims_go_by_priority_then_age_and_only_to_workers_with_the_model(
    store: EventStore,
) -> None:
    await enqueue(store, "old")
    await enqueue(store, "new")
    await enqueue(store, "urgent", priority=5)
    await enqueue(store, "picky", priority=9, model="m")
    assert [c.request for c in await store.claim(worker="w", limit=2, lease=1)] == ["urgent", "old"]
    assert [c.request for c in await store.claim(worker="w", limit=9, lease=1)] == ["new"]
    assert await store.claim(worker="w", limit=9, lease=1, models=["other"]) == []
    [claimed] = await store.claim(worker="w", limit=9, lease=1, models=["other", "m"])
    assert claimed.request == "picky"


async def test_tenants_hold_the_same_however_many_of_theirs_wait(store: EventStore) -> None:
    for number in range(30):
        await enqueue(store, f"a{number}", tenant="a")
    await enqueue(store, "b0", tenant="b")
    await enqueue(store, "urgent", tenant="a", priority=5)
    await enqueue(store, "b1", tenant="b")
    await enqueue(store, "picky", tenant="c", model="m")
    order = Order(fair=True)

    async def claim(limit: int, order: Order = order) -> list[str]:
        return [c.request for c in await store.claim(worker="w", limit=limit, lease=9, order=order)]

    assert await claim(4) == ["urgent", "b0", "a0", "b1"]
    assert await claim(2) == ["a1", "a2"]
    await enqueue(store, "b2", tenant="b")  # of a they hold four, of b two
    await enqueue(store, "c0", tenant="c")
    assert await claim(3) == ["c0", "b2", "a3"]
    assert await claim(2, Order(priority=False)) == ["a4", "a5"]


async def test_what_waits_is_counted(store: EventStore) -> None:
    assert await store.waiting("a") == (0, 0)
    for number, tenant in enumerate("aab"):
        await enqueue(store, f"r{number}", tenant=tenant)
    await enqueue(store, "system's")
    assert await store.waiting("a") == (2, 4)
    assert await store.waiting("system") == (1, 4)
    await store.claim(worker="w", limit=1, lease=9)
    await write(store, "request.cancelled", "r1", None)
    assert await store.waiting("a") == (0, 2)


async def test_claims_may_be_of_a_larger_priority_only_or_by_age_alone(store: EventStore) -> None:
    for number, priority in enumerate((0, -5, 3, 7)):
        await enqueue(store, f"r{number}", priority=priority)

    async def claim(limit: int, **order: Any) -> list[str]:
        claims = await store.claim(worker="w", limit=limit, lease=9, order=Order(**order))
        return [c.request for c in claims]

    assert await claim(9, above=3, fair=True) == ["r3"]
    assert await claim(9, above=3) == []
    assert await claim(1, priority=False, fair=True) == ["r0"]
    assert await claim(1, priority=False) == ["r1"]
    assert await claim(9, above=-5) == ["r2"]


async def test_concurrent_claims_never_share_a_request(store: EventStore) -> None:
    for i in range(20):
        await enqueue(store, f"r{i}", stream=f"thread/{i}")
    found = await asyncio.gather(
        *(store.claim(worker=f"w{i}", limit=3, lease=1) for i in range(10))
    )
    requests = [claimed.request for part in found for claimed in part]
    assert sorted(requests) == sorted(f"r{i}" for i in range(20))


@pytest.mark.parametrize("state", ["none", "queued", *PATHS])
async def test_only_legal_transitions(store: EventStore, state: str) -> None:
    for event_type in TRANSITIONS:
        request = event_type.replace(".", "-")
        if state != "none":
            await bring_to(store, request, state)
        before = await store.head()
        epoch = 1 if event_type in FENCED and state != "none" else None
        if event_type == "request.queued":
            outcome: object = await store.append(
                Append(stream="thread/a", events=[queued(request)])
            )
        elif event_type == "request.claimed":
            event = life("request.started", request)
            outcome = await store.append(
                Append(
                    stream="thread/a",
                    events=[type(event)(type=event_type, data=event.data, request=request)],
                )
            )
        else:
            outcome = await write(store, event_type, request, epoch)
        if state in TERMINAL:
            assert outcome == Closed(state)
        elif state == "none":
            legal = event_type == "request.queued"
            assert outcome == (
                Appended(before + 1, before + 1, before + 1) if legal else Illegal(event_type, None)
            )
        elif event_type == "request.claimed":  # only claim() may
            assert outcome == Illegal(event_type, state)
        elif state == "queued" and event_type in FENCED:  # nobody holds it
            assert outcome == Fenced(0)
        elif state in TRANSITIONS[event_type]:
            assert isinstance(outcome, Appended)
        else:
            assert outcome == Illegal(event_type, state)
        assert await store.head() == before + isinstance(outcome, Appended)
        if state == "queued":  # do not leave it to the next claim
            await write(store, "request.cancelled", request, None)


async def test_fenced_events_need_the_fence_of_their_request(store: EventStore) -> None:
    for request in ("r", "s"):
        await enqueue(store, request)
    await store.claim(worker="w", limit=2, lease=10)
    assert await write(store, "request.started", "r", None) == Fenced(1)
    other = Append(stream="thread/a", events=[life("request.started", "r")], fence=Fence("s", 1))
    assert await store.append(other) == Fenced(1)
    assert await write(store, "request.started", "r", 2) == Fenced(1)
    unknown = Append(stream="thread/a", events=[life("request.started", "x")], fence=Fence("x", 1))
    assert await store.append(unknown) == Illegal("request.started", None)


async def test_a_fence_guards_any_event(store: EventStore) -> None:
    await enqueue(store, "r")
    await store.claim(worker="w", limit=1, lease=10)
    await store.expire(worker="w", reason="test")
    await store.claim(worker="v", limit=1, lease=10)
    late = notes("thread/a", "late")
    assert await store.append(
        Append(stream=late.stream, events=late.events, fence=Fence("r", 1))
    ) == Fenced(2)
    await must(store, Append(stream=late.stream, events=late.events, fence=Fence("r", 2)))


async def test_a_request_stays_in_its_stream(store: EventStore) -> None:
    await enqueue(store, "r")
    [_] = await store.claim(worker="w", limit=1, lease=10)
    assert await write(store, "request.started", "r", 1, stream="thread/b") == Illegal(
        "request.started", "claimed"
    )


async def test_several_transitions_in_one_append_are_all_or_none(store: EventStore) -> None:
    await enqueue(store, "r")
    await store.claim(worker="w", limit=1, lease=10)
    fence = Fence("r", 1)
    bad = [life("request.started", "r"), life("request.resumed", "r")]
    assert await store.append(Append(stream="thread/a", events=bad, fence=fence)) == Illegal(
        "request.resumed", "running"
    )
    assert (await store.leases())[0].state == "claimed"
    good = [
        life("request.started", "r"),
        life("tokens.generated", "r"),
        life("request.finished", "r"),
    ]
    await must(store, Append(stream="thread/a", events=good, fence=fence))
    assert await store.leases() == []
    [row] = await store.leases(open_only=False)
    assert (row.state, row.worker, row.until) == ("finished", None, None)


async def test_after_a_stop_the_engine_is_told_it_is_closed(store: EventStore) -> None:
    await bring_to(store, "r", "running")
    assert isinstance(await write(store, "request.cancelled", "r", None), Appended)
    assert await write(store, "tokens.generated", "r", 1) == Closed("cancelled")


async def test_an_expired_lease_is_given_back_and_its_old_holder_fenced(
    store: EventStore, clock: Clock
) -> None:
    await bring_to(store, "r", "running")
    assert await store.expire() == []
    clock.advance(10.001)
    assert await store.expire() == ["r"]
    event = (await store.fetch())[-1]
    assert event.type == "request.abandoned"
    assert decode(event).reason == "lease expired"  # type: ignore[union-attr]
    assert await write(store, "tokens.generated", "r", 1) == Fenced(1)
    assert await store.heartbeat(worker="w", lease=10) == []
    [claimed] = await store.claim(worker="w", limit=1, lease=10)  # the same name, a new claim
    assert claimed.epoch == 2
    assert await write(store, "request.started", "r", 1) == Fenced(2)
    assert isinstance(await write(store, "request.started", "r", 2), Appended)


async def test_heartbeats_keep_leases_and_are_no_events(store: EventStore, clock: Clock) -> None:
    await enqueue(store, "r")
    await enqueue(store, "s")
    await store.claim(worker="w", limit=1, lease=10)
    await store.claim(worker="v", limit=1, lease=10)
    head = await store.head()
    clock.advance(8)
    assert await store.heartbeat(worker="w", lease=10) == [Fence("r", 1)]
    clock.advance(8)
    assert await store.expire() == ["s"]
    assert await store.head() == head + 1


async def test_a_worker_gives_everything_back(store: EventStore) -> None:
    for request in ("r", "s", "t"):
        await enqueue(store, request)
    await store.claim(worker="w", limit=2, lease=99)
    await store.claim(worker="v", limit=1, lease=99)
    assert await store.expire(worker="w", reason="drain") == ["r", "s"]
    assert await store.expire(worker="w", reason="drain") == []
    assert {lease.request: lease.state for lease in await store.leases()} == {
        "r": "queued",
        "s": "queued",
        "t": "claimed",
    }


async def test_leases_of_a_stream(store: EventStore) -> None:
    await enqueue(store, "r", stream="thread/a")
    await enqueue(store, "s", stream="thread/b")
    await write(store, "request.cancelled", "s", None, stream="thread/b")
    assert [lease.request for lease in await store.leases(stream="thread/a")] == ["r"]
    assert await store.leases(stream="thread/b") == []
    assert [lease.request for lease in await store.leases(open_only=False)] == ["r", "s"]


@pytest.mark.parametrize("kind", PERSISTENT)
async def test_the_queue_survives_a_restart(open_log: Open, clock: Clock) -> None:
    async with open_log(clock=clock) as store:
        await bring_to(store, "r", "running")
        await enqueue(store, "s")
        await must(store, notes("thread/a", "x", command="c"))
        before = await store.leases()
        incarnation = store.incarnation
    async with open_log(clock=clock) as store:
        assert store.incarnation == incarnation
        assert await store.leases() == before
        assert isinstance(await write(store, "tokens.generated", "r", 1), Appended)
        assert (await store.append(notes("thread/a", "x", command="c"))).seq == 5  # type: ignore[union-attr]
        assert await store.expire(worker="w") == ["r"]
        assert len(await store.claim(worker="w", limit=5, lease=1)) == 2

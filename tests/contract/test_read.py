"""Reading: contiguous slices from memory or database, waiting, following."""

from __future__ import annotations

import asyncio

import pytest

from app.events.envelope import Event, NewEvent
from app.events.store import Append, EventStore, StoreClosed
from tests.contract.conftest import Open
from tests.contract.support import must, note, notes

COUNT = 200  # more than the ring of the fixture holds


@pytest.fixture
async def filled(store: EventStore) -> EventStore:
    for i in range(COUNT // 2):
        await store.append_many([notes(f"thread/{i % 3}", str(i)), ping(i)])
    return store


def ping(i: int) -> Append:
    return Append(stream="user/x", events=[NewEvent(type="test.ping", data=b"%d" % i)])


async def everything(store: EventStore) -> list[Event]:
    return [event async for event in store.read()]


@pytest.mark.parametrize("after", [0, 1, 99, 120, 149, 150, 151, 198, 199, 200, 500])
@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_slices_of_the_log(filled: EventStore, after: int, limit: int) -> None:
    events = await everything(filled)
    assert len(events) == COUNT
    assert await filled.fetch(after=after, limit=limit) == events[after : after + limit]
    assert [e async for e in filled.read(after=after, limit=limit)] == events[after : after + limit]
    assert await filled.fetch(after=after, until=180) == events[after:180]
    some = [e for e in events[after:] if e.type == "test.ping"]
    assert await filled.fetch(after=after, types=["test.ping"], limit=limit) == some[:limit]
    assert [e async for e in filled.read(after=after, types=["test.ping"])] == some
    assert await filled.fetch(after=after, types=["no.such"]) == []
    assert await filled.fetch(after=after, types=[]) == []


@pytest.mark.parametrize("after", [0, 1, 20, 30, 33, 34, 50])
async def test_slices_of_a_stream(filled: EventStore, after: int) -> None:
    for stream in ("thread/0", "thread/2", "user/x", "thread/none"):
        events = [e for e in await everything(filled) if e.stream == stream]
        assert [e.version for e in events] == list(range(1, len(events) + 1))
        assert await filled.fetch(stream=stream, after=after) == events[after:]
        assert await filled.fetch(stream=stream, after=after, limit=3) == events[after : after + 3]
        assert await filled.fetch(stream=stream, after=after, until=32) == events[after:32]
        assert [e async for e in filled.read(stream=stream, after=after)] == events[after:]


async def test_read_ends_at_the_head_it_found(store: EventStore) -> None:
    await must(store, notes("thread/a", "1", "2"))
    found = []
    async for event in store.read():
        found.append(event.seq)
        await must(store, notes("thread/a", "more"))
    assert found == [1, 2]


async def test_wait_returns_at_once_when_there_is_something(store: EventStore) -> None:
    await must(store, notes("thread/a", "1"))
    await store.wait(after=0)
    await store.wait(after=0, stream="thread/a")


@pytest.mark.parametrize("stream", [None, "thread/a"])
async def test_wait_wakes_at_a_commit(store: EventStore, stream: str | None) -> None:
    task = asyncio.create_task(store.wait(after=0, stream=stream))
    other = asyncio.create_task(store.wait(after=0, stream="thread/other"))
    await asyncio.sleep(0.01)
    assert not task.done()
    await must(store, notes("thread/a", "1"))
    await asyncio.wait_for(task, 2)
    assert not other.done()
    other.cancel()


async def test_wait_for_a_position_ahead(store: EventStore) -> None:
    task = asyncio.create_task(store.wait(after=2, stream="thread/a"))
    for text in ("1", "2"):
        await must(store, notes("thread/a", text))
    await asyncio.sleep(0.01)
    assert not task.done()
    await must(store, notes("thread/a", "3"))
    await asyncio.wait_for(task, 2)


async def test_closing_ends_waiting_and_following(open_log: Open) -> None:
    async def follow(store: EventStore) -> None:
        async for _ in store.follow():
            pass

    async with open_log() as store:
        waiting = asyncio.create_task(store.wait(after=0, stream="thread/a"))
        following = asyncio.create_task(follow(store))
        await asyncio.sleep(0.01)
    for task in (waiting, following):
        with pytest.raises(StoreClosed):
            await asyncio.wait_for(task, 2)


async def collect(
    store: EventStore, count: int, into: list[Event], stream: str | None = None, **options: object
) -> None:
    """Follow until ``count`` events came, dropping and resuming the subscription on the way."""
    cursor = 0
    while len(into) < count:
        async for batch in store.follow(after=cursor, stream=stream, **options):  # type: ignore[arg-type]
            into += batch
            cursor = batch[-1].seq if stream is None else batch[-1].version
            if len(into) % 3 == 0 or len(into) >= count:
                break


async def test_followers_miss_nothing_and_repeat_nothing(store: EventStore) -> None:
    seen: dict[str | None, list[Event]] = {s: [] for s in (None, "thread/0", "thread/1")}
    rounds, writers = 25, 4
    pinged: list[Event] = []
    async with asyncio.TaskGroup() as group:
        for stream, into in seen.items():
            count = rounds * writers * 2 if stream is None else rounds * 2
            group.create_task(collect(store, count, into, stream))
        group.create_task(collect(store, rounds * writers, pinged, types=["test.ping"]))

        async def write(i: int) -> None:
            for _ in range(rounds):
                event = NewEvent(type="test.ping", data=b"1")
                await must(store, Append(stream=f"thread/{i}", events=[note("x"), event]))
                await asyncio.sleep(0)

        for i in range(writers):
            group.create_task(write(i))
    events = await everything(store)
    assert seen.pop(None) == events
    for stream, into in seen.items():
        assert into == [e for e in events if e.stream == stream]
    assert pinged == [e for e in events if e.type == "test.ping"]


async def test_followers_that_come_with_the_first_events(store: EventStore) -> None:
    """The position of a stream nobody knows yet is looked up while commits to it are under way."""

    async def follow(stream: str, count: int) -> None:
        versions: list[int] = []
        async for batch in store.follow(stream=stream):
            versions += [event.version for event in batch]
            if len(versions) >= count:
                assert versions == list(range(1, count + 1))
                return

    async def write(stream: str, count: int) -> None:
        for _ in range(count):
            await must(store, notes(stream, "x"))

    for round in range(8):
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            for i in range(60):
                group.create_task(follow(f"thread/{round}.{i}", 5))
                group.create_task(write(f"thread/{round}.{i}", 5))


async def test_a_slow_follower_reads_the_past_from_the_database(store: EventStore) -> None:
    await must(store, notes("thread/a", "first"))
    follower = store.follow(stream="thread/a")
    got = await anext(follower)
    for i in range(300):  # the ring forgets the beginning meanwhile
        await must(store, notes("thread/a", str(i)))
    while len(got) < 301:
        got += await anext(follower)
    assert [e.version for e in got] == list(range(1, 302))

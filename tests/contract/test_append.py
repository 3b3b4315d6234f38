"""Appends: atomic, in order, once, and each for itself."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from app.events.envelope import NewEvent
from app.events.leaf import leaves
from app.events.logstore import LogStore
from app.events.store import (
    ANY,
    NO_STREAM,
    Append,
    Appended,
    Conflict,
    Duplicate,
    EventStore,
    StoreClosed,
    StoreError,
)
from tests.contract.conftest import Open
from tests.contract.support import Clock, must, note, notes, titles


async def test_positions_are_gapless_and_versions_count_each_stream(store: EventStore) -> None:
    assert await store.head() == 0
    assert await must(store, notes("thread/a", "1", "2")) == Appended(1, 2, 2)
    assert await must(store, notes("thread/b", "3")) == Appended(3, 3, 1)
    assert await must(store, notes("thread/a", "4")) == Appended(4, 4, 3)
    events = [event async for event in store.read()]
    assert [e.seq for e in events] == [1, 2, 3, 4]
    assert [(e.stream, e.version) for e in events] == [
        ("thread/a", 1),
        ("thread/a", 2),
        ("thread/b", 1),
        ("thread/a", 3),
    ]
    assert await store.head() == 4
    assert await store.stream_version("thread/a") == 3
    assert await store.stream_version("thread/none") == 0


async def test_everything_comes_back_as_it_was_given(store: EventStore, clock: Clock) -> None:
    given = NewEvent(
        type="later.invented",
        schema=7,
        data='{"x": [1, 2.50, "ü\\u0000"]}'.encode(),
        actor="user:ø",
        request="r",
        run="n",
        cause="c",
        time=17,
    )
    plain = NewEvent(type="later.invented", data=b"{}")
    await must(store, Append(stream="user/x", events=[given, plain]))
    first, second = await store.fetch()
    for field in NewEvent.__struct_fields__:
        assert getattr(first, field) == getattr(given, field)
    assert second.time == clock.now
    assert (second.actor, second.request, second.run, second.cause) == ("system", None, None, None)


AWKWARD = ['"', "\\", "a\nb", "\t", "{", "}", "null", "NULL", ",", "", "ü\u2028", "\x7f", "'", "$1"]


async def test_awkward_texts_come_back_and_hash_as_they_are(store: LogStore) -> None:
    """Wherever a text may stand, with neighbours that have none or are refused."""
    appends = [
        Append(
            stream=f'thread/{place}"\\{{,',
            events=[
                NewEvent(type="later.invented", data=b"{}", actor=text, run=text, time=place),
                NewEvent(type="later.invented", data=b'{"\\n":"\\\\"}', request=text, cause=text),
            ][: 1 + place % 2],
            expected=5 if place % 3 == 2 else ANY,
            command=f'{place}"\\',
        )
        for place, text in enumerate(AWKWARD)
    ]
    outcomes = await store.append_many(appends)
    assert [isinstance(o, Appended) for o in outcomes] == [a.expected == ANY for a in appends]
    given = [(a.stream, e) for a in appends if a.expected == ANY for e in a.events]
    rows = await store.rows(after=0, limit=100)
    for row, (stream, new) in zip(rows, given, strict=True):
        assert not isinstance(row, StoreError)
        event, salt, leaf = row
        assert event.stream == stream
        for field in ("type", "data", "actor", "request", "run", "cause"):
            assert getattr(event, field) == getattr(new, field)
        assert leaves([event], [salt]) == [leaf]
    again = await store.append_many([a for a in appends if a.expected == ANY])
    assert all(isinstance(outcome, Duplicate) for outcome in again)


async def test_expected_version(store: EventStore) -> None:
    await must(store, notes("thread/a", "1", expected=NO_STREAM))
    assert await store.append(notes("thread/a", "no", expected=NO_STREAM)) == Conflict(1)
    assert await store.append(notes("thread/a", "no", expected=5)) == Conflict(1)
    assert await store.append(notes("thread/b", "no", expected=1)) == Conflict(0)
    await must(store, notes("thread/a", "2", expected=1))
    assert await titles(store) == [b'{"title":"1"}', b'{"title":"2"}']


async def test_of_many_with_the_same_expectation_one_wins(store: EventStore) -> None:
    outcomes = await asyncio.gather(
        *(store.append(notes("thread/a", str(i), expected=NO_STREAM)) for i in range(20))
    )
    assert sum(isinstance(o, Appended) for o in outcomes) == 1
    assert sum(o == Conflict(1) for o in outcomes) == 19
    assert await store.head() == 1


async def test_a_command_takes_effect_once(store: EventStore) -> None:
    done = await must(store, notes("thread/a", "1", "2", command="c", expected=NO_STREAM))
    await must(store, notes("thread/a", "3"))
    again = await store.append(notes("thread/a", "1", "2", command="c", expected=NO_STREAM))
    assert again == Duplicate(done.last_seq, done.version)
    assert await store.head() == 3


async def test_a_refused_command_may_be_sent_again(store: EventStore) -> None:
    await must(store, notes("thread/a", "1"))
    assert await store.append(notes("thread/a", "2", command="c", expected=7)) == Conflict(1)
    await must(store, notes("thread/a", "2", command="c", expected=1))


async def test_the_same_command_at_the_same_time(store: EventStore) -> None:
    outcomes = await store.append_many([notes("thread/a", "1", command="c")] * 3)
    assert outcomes == [Appended(1, 1, 1), Duplicate(1, 1), Duplicate(1, 1)]


async def test_neighbours_do_not_share_a_fate(store: EventStore) -> None:
    outcomes = await store.append_many(
        [
            notes("thread/a", "1"),
            notes("thread/a", "no", expected=9),
            notes("thread/b", "2"),
            notes("thread/a", "3", expected=1),
        ]
    )
    assert outcomes == [Appended(1, 1, 1), Conflict(1), Appended(2, 2, 1), Appended(3, 3, 2)]


async def test_one_that_cannot_be_stored_does_not_harm_the_others(store: EventStore) -> None:
    broken = NewEvent(type="x.y", data=b"{}", actor="\ud800")  # a lone surrogate is not UTF-8
    results = await asyncio.gather(
        store.append(notes("thread/a", "1")),
        store.append(Append(stream="thread/a", events=[note("half"), broken])),
        store.append(notes("thread/b", "2")),
        return_exceptions=True,
    )
    assert isinstance(results[1], ValueError)
    assert results[0] == Appended(1, 1, 1)
    assert results[2] == Appended(2, 2, 1)
    assert await titles(store) == [b'{"title":"1"}', b'{"title":"2"}']


@pytest.mark.parametrize("stream", ["", "thread/", "Thread/a", "thread/a b", "thread/a/b", "/a"])
async def test_malformed_stream_names(store: EventStore, stream: str) -> None:
    with pytest.raises(ValueError, match="stream name"):
        await store.append(notes(stream, "x"))


async def test_malformed_appends(store: EventStore) -> None:
    with pytest.raises(ValueError, match="at least one"):
        await store.append(Append(stream="thread/a", events=[]))
    nobody = NewEvent(type="request.cancelled", data=b"{}")
    with pytest.raises(ValueError, match="request"):
        await store.append(Append(stream="thread/a", events=[nobody]))
    shapeless = NewEvent(type="request.queued", data=b"[]", request="r")
    with pytest.raises(ValueError, match="malformed"):
        await store.append(Append(stream="thread/a", events=[shapeless]))
    assert await store.head() == 0


async def test_cancelling_a_caller_takes_nothing_back_and_breaks_nothing(store: EventStore) -> None:
    for round in range(20):
        tasks = [
            asyncio.create_task(store.append(notes(f"thread/{i}", f"{round}.{i}", "end")))
            for i in range(8)
        ]
        await asyncio.sleep(0)
        if round % 2:
            await asyncio.sleep(0.0005 * (round % 5))
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, Appended) for r in results[1::2])
    events = [event async for event in store.read()]
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    for i in range(8):
        of_stream = [e for e in events if e.stream == f"thread/{i}"]
        assert [e.version for e in of_stream] == list(range(1, len(of_stream) + 1))
        assert len(of_stream) % 2 == 0  # atomic: never half an append
    for i in range(1, 8, 2):
        assert await store.stream_version(f"thread/{i}") == 40


async def test_acknowledged_before_begun_means_a_lower_position(store: EventStore) -> None:
    """I3 of the design: real-time order of appends is the order of the log."""
    last = 0

    async def writer(name: str) -> None:
        nonlocal last
        for i in range(30):
            begun_after = last
            done = await must(store, notes(f"thread/{name}", str(i)))
            assert done.first_seq > begun_after
            last = max(last, done.last_seq)

    await asyncio.gather(*(writer(f"w{i}") for i in range(10)))
    assert await store.head() == 300


async def test_a_clock_that_was_far_ahead(store: EventStore, clock: Clock) -> None:
    """Once it is right again, so are the times of events."""
    right = clock.now
    clock.advance(70 * 365 * 86_400)
    await must(store, notes("thread/a", "x"))
    clock.now = right
    await must(store, notes("thread/a", "y"))
    assert [event.time for event in await store.fetch(after=1)] == [right]


async def test_time_never_runs_backwards_when_the_store_gives_it(
    store: EventStore, clock: Clock
) -> None:
    await must(store, notes("thread/a", "1"))
    clock.advance(-10)
    await must(store, notes("thread/a", "2"))
    first, second = await store.fetch()
    assert second.time >= first.time


async def test_closing_finishes_what_was_accepted(open_log: Open) -> None:
    async with open_log() as store:
        tasks = [asyncio.create_task(store.append(notes("thread/a", str(i)))) for i in range(50)]
        await asyncio.sleep(0)
    assert [msgspec.to_builtins(await t)["version"] for t in tasks] == list(range(1, 51))
    with pytest.raises(StoreClosed):
        await store.append(notes("thread/a", "late"))
    with pytest.raises(StoreClosed):
        await store.append_many([notes("thread/a", "late")])
    with pytest.raises(StoreClosed):
        await store.fetch()


async def test_more_callers_than_the_queue_holds(store: EventStore) -> None:
    count = 9_000
    outcomes = await asyncio.gather(
        *(store.append(notes(f"thread/{i % 10}", "x")) for i in range(count))
    )
    assert sorted(o.first_seq for o in outcomes if isinstance(o, Appended)) == list(
        range(1, count + 1)
    )


async def test_leaves_are_those_of_any_name(store: EventStore) -> None:
    """Also where a name does not stand in JSON as it is, alone or among others."""
    for names in (["plain"], ['a"b\\c'], ["ünï", "plain", "\x01\x7f"]):
        events = [NewEvent(type="later.invented", data=b"{}", actor=f'"{n}"') for n in names]
        await store.append_many(
            [
                Append(stream=f"thread/{name}", events=[event, event])
                for name, event in zip(names, events, strict=True)
            ]
        )
    assert isinstance(store, LogStore)
    rows = await store.rows(after=0, limit=100)
    assert len(rows) == 10
    for row in rows:
        assert not isinstance(row, StoreError)
        event, salt, leaf = row
        assert leaves([event], [salt]) == [leaf]

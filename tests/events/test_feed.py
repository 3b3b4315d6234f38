"""The ring: bounded, contiguous, indexed by stream."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from app.events.envelope import Event
from app.events.feed import OVERHEAD, Feed


def event(seq: int, stream: str, version: int, size: int = 10) -> Event:
    return Event(
        seq=seq,
        stream=stream,
        version=version,
        type="test.ping",
        schema=1,
        time=0,
        actor="system",
        request=None,
        run=None,
        cause=None,
        data=b"x" * size,
    )


@given(
    batches=st.lists(st.lists(st.sampled_from("abc"), max_size=20), max_size=20),
    bound=st.integers(1, 30),
    start=st.integers(0, 5),
)
def test_it_gives_exactly_the_tail_of_the_log(
    batches: list[list[str]], bound: int, start: int
) -> None:
    feed = Feed(max_events=bound)
    feed.reset(start + 1)
    log: list[Event] = []
    versions = dict.fromkeys("abc", start)
    for names in batches:
        batch: list[Event] = []
        for name in names:
            versions[name] += 1
            batch.append(event(start + len(log) + len(batch) + 1, name, versions[name]))
        feed.publish(batch)
        log += batch
        assert len(feed) == min(bound, len(log))
    kept = log[-bound:]
    for after in range(start, start + len(log) + 1):
        found = feed.recent(after, None, 7)
        wanted = [e for e in log if e.seq > after][:7]
        assert found == (wanted if after >= start + len(log) - len(kept) else None)
    for name in "abc":
        of_stream = [e for e in kept if e.stream == name]
        for after in range(start, versions[name] + 1):
            found = feed.recent(after, name, 100)
            if of_stream and after >= of_stream[0].version - 1:
                assert found == [e for e in of_stream if e.version > after]
            else:
                assert found is None
    for e in log:
        assert feed.at(e.seq) == (e if e in kept else None)


def test_it_is_bounded_by_bytes() -> None:
    feed = Feed(max_bytes=10 * (OVERHEAD + 100))
    for seq in range(1, 101):
        feed.publish([event(seq, "a", seq, 100)])
    assert len(feed) == 10
    feed.publish([event(101, "a", 101, 10**6)])  # larger than everything: kept nowhere
    assert len(feed) == 0
    feed.publish([event(102, "a", 102, 1)])
    assert feed.recent(101) == [event(102, "a", 102, 1)]


def test_a_jump_in_the_log_forgets_what_was_before() -> None:
    feed = Feed()
    feed.publish([event(1, "a", 1), event(2, "a", 2)])
    feed.publish([event(9, "a", 7)])
    assert feed.recent(1) is None
    assert feed.recent(8) == [event(9, "a", 7)]
    assert feed.recent(2, "a") is None


def test_wake_ups() -> None:
    feed = Feed()
    calls: list[str] = []
    callbacks = {name: (lambda name=name: calls.append(name)) for name in ("a", "b", "all")}
    feed.register("a", callbacks["a"])
    feed.register("b", callbacks["b"])
    feed.register(None, callbacks["all"])
    feed.publish([event(1, "a", 1), event(2, "a", 2)])
    assert sorted(calls) == ["a", "all"]
    feed.unregister("a", callbacks["a"])
    feed.unregister("a", callbacks["a"])
    feed.publish([event(3, "a", 3)])
    assert sorted(calls) == ["a", "all", "all"]
    feed.wake(None)
    assert sorted(calls) == ["a", "all", "all", "all", "b"]
    feed.unregister("b", callbacks["b"])
    feed.unregister(None, callbacks["all"])
    assert not feed.watched


def test_memory_is_given_back() -> None:
    """The run of a stream is cut as it is consumed, and forgotten when it is empty."""
    feed = Feed(max_events=10)
    for seq in range(1, 5_001):
        feed.publish([event(seq, f"s{seq % 7}", seq // 7 + 1)])
    assert len(feed._streams) == 7
    assert len(feed._log.items) < 200
    for seq in range(5_001, 5_100):
        feed.publish([event(seq, "one", seq)])
    assert len(feed._streams) == 1


def test_it_forgets_everything_when_payloads_are_erased() -> None:
    feed, calls = Feed(), []
    feed.erased = lambda: calls.append("erased")
    feed.publish([event(1, "a", 1), event(2, "b", 1)])
    record = msgspec.structs.replace(event(4, "log", 1), type="log.redacted")
    feed.publish([event(3, "a", 2), record])
    assert (len(feed), calls) == (0, ["erased"])
    assert feed.recent(1) is None and feed.recent(0, "a") is None
    feed.publish([event(5, "a", 3)])
    assert [e.seq for e in feed.recent(4) or ()] == [5]
    assert [e.version for e in feed.recent(2, "a") or ()] == [3]

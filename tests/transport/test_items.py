"""Items and frames: payloads verbatim, deltas merged, versions adding up."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.events.catalogue import (
    MessageDelta,
    MessageStarted,
    Payload,
    RequestQueued,
    SamplingParams,
    TokenLogprobs,
    TokensGenerated,
)
from app.events.codec import new
from app.events.envelope import Event, thread_stream
from app.events.redaction import remainder
from app.projections import state as projection
from app.transport import items
from app.transport.items import Delivery, ItemCache, to_event
from app.transport.protocol import Events, Item, decode_server

T = "t1"


def event(version: int, payload: Payload, *, request: str | None = None) -> Event:
    made = new(payload, actor="handler:x", request=request, run="r")
    return Event(
        seq=1000 + 2 * version,
        stream=thread_stream(T),
        version=version,
        type=made.type,
        schema=made.schema,
        time=10**18 + version,
        actor=made.actor,
        request=request,
        run="r",
        cause=None,
        data=made.data,
    )


def tokens(version: int, request: str, batch: int, index: int, n: int = 2, epoch: int = 1) -> Event:
    payload = TokensGenerated(
        request=request,
        epoch=epoch,
        batch=batch,
        index=index,
        tokens=list(range(index, index + n)),
        text=f"é{index} " * n,
        offsets=[float(i) for i in range(n)],
        logprobs=[
            TokenLogprobs(logprob=-1.0 - i, top=[(i, -0.5)]) for i in range(index, index + n)
        ],
    )
    return event(version, payload, request=request)


def received(delivery: Delivery, events: list[Event]) -> list[Events]:
    frames = [decode_server(data) for data in delivery.frames(events)]
    assert all(isinstance(frame, Events) for frame in frames)
    return frames  # type: ignore[return-value]


def flat(frames: list[Events]) -> list[Item]:
    return [item for frame in frames for item in frame.items]


def test_payload_bytes_are_spliced_verbatim() -> None:
    odd = b'{"message" : "m",\t"text":"\\u00e9\\/",  "extra":[1,2 ,3e0]}'
    made = msgspec.structs.replace(event(1, MessageDelta(message="m", text="")), data=odd)
    (frame,) = Delivery(T, 0, ItemCache()).frames([made])
    assert odd in frame
    assert bytes(flat(received(Delivery(T, 0, ItemCache()), [made]))[0].data) == odd


def test_item_leaves_out_what_is_not_there() -> None:
    plain = msgspec.structs.replace(
        event(1, MessageDelta(message="m", text="x")), request=None, run=None
    )
    item = msgspec.json.decode(ItemCache().encode(plain))
    assert set(item) == {"v", "seq", "type", "time", "actor", "data"}
    newer = msgspec.json.decode(ItemCache().encode(msgspec.structs.replace(plain, schema=2, seq=9)))
    assert newer["schema"] == 2


def test_cache_returns_the_same_bytes_and_keeps_large_items_out() -> None:
    cache = ItemCache(size=4, largest=200)
    small, large = (
        event(1, MessageDelta(message="m", text="x")),
        event(2, MessageDelta(message="m", text="x" * 300)),
    )
    assert cache.encode(small) is cache.encode(small)
    assert cache.encode(large) is not cache.encode(large)
    for version in range(1, 50):
        one = event(version, MessageDelta(message="m", text=str(version)))
        assert msgspec.json.decode(cache.encode(one))["v"] == version


def test_cache_does_not_keep_what_was_erased() -> None:
    cache, one = ItemCache(), event(1, MessageDelta(message="m", text="Zanzibar"))
    assert b"Zanzibar" in cache.encode(one)
    left = remainder(one)
    assert left is not None
    assert b"Zanzibar" not in cache.encode(msgspec.structs.replace(one, data=left))


def test_a_client_that_keeps_up_gets_every_batch() -> None:
    events = [tokens(v, "q", v - 1, 2 * (v - 1)) for v in range(1, items.LAG + 1)]
    got = flat(received(Delivery(T, 0, ItemCache()), events))
    assert [item.v for item in got] == list(range(1, items.LAG + 1))
    assert all(item.to is None for item in got)


def test_a_client_that_lags_gets_merged_batches() -> None:
    events = [tokens(v, "q", v - 1, 2 * (v - 1)) for v in range(1, 31)]
    frames = received(Delivery(T, 0, ItemCache()), events)
    first, rest = flat(frames)
    assert (first.v, first.to) == (1, None)  # the first batch keeps its time
    assert (rest.v, rest.to, rest.seq, rest.time) == (2, 30, events[-1].seq, events[-1].time)
    data = msgspec.json.decode(rest.data, type=TokensGenerated)
    assert (data.batch, data.index, data.epoch) == (1, 2, 1)
    assert data.tokens == list(range(2, 60))
    whole = [msgspec.json.decode(e.data, type=TokensGenerated) for e in events[1:]]
    assert data.text == "".join(p.text for p in whole)
    assert data.offsets == [o for p in whole for o in p.offsets]
    assert data.logprobs == [one for p in whole for one in p.logprobs]


def test_nothing_is_merged_across_epochs_requests_or_messages() -> None:
    events = [tokens(v, "q", v, 2 * v) for v in range(1, 6)]
    events += [tokens(v, "q", v, 2 * v, epoch=2) for v in range(6, 9)]
    events += [tokens(9, "p", 4, 8), tokens(10, "p", 5, 10)]
    events += [event(v, MessageDelta(message="m", text=str(v))) for v in (11, 12, 13)]
    events += [event(v, MessageDelta(message="n", text=str(v))) for v in (14, 15)]
    got = flat(received(Delivery(T, 0, ItemCache()), events))
    assert [(item.v, item.last) for item in got] == [
        (1, 5), (6, 8), (9, 10), (11, 11), (12, 13), (14, 14), (15, 15),
    ]  # fmt: skip


def test_a_payload_that_cannot_be_read_is_passed_on() -> None:
    events = [tokens(v, "q", v, 2 * v) for v in range(1, 12)]
    events[5] = msgspec.structs.replace(events[5], data=b"null")
    got = flat(received(Delivery(T, 0, ItemCache()), events))
    assert [item.v for item in got] == list(range(1, 12))
    assert bytes(got[5].data) == b"null"


def test_frames_are_bounded_and_one_large_item_still_travels() -> None:
    big = [event(v, MessageDelta(message=f"m{v}", text="x" * 40_000)) for v in range(1, 5)]
    huge = [event(5, MessageDelta(message="m", text="x" * 200_000))]
    frames = received(Delivery(T, 0, ItemCache()), big + huge)
    assert [(f.first, f.last) for f in frames] == [(v, v) for v in range(1, 6)]
    many = [event(v, MessageStarted(message=f"m{v}")) for v in range(1, 601)]
    frames = received(Delivery(T, 0, ItemCache()), many)
    assert all(len(f.items) <= items.MAX_ITEMS for f in frames)
    assert [f.first for f in frames[1:]] == [f.last + 1 for f in frames[:-1]]


@pytest.mark.parametrize("versions", [[2, 3], [1, 3], [1, 2, 4]])
def test_a_hole_is_never_sent(versions: list[int]) -> None:
    events = [event(v, MessageDelta(message="m", text="x")) for v in versions]
    with pytest.raises(RuntimeError, match="after version 0"):
        list(Delivery(T, 0, ItemCache()).frames(events))


# A thread with a few requests and messages whose deltas interleave in any way.
moves = st.lists(
    st.one_of(
        st.tuples(st.just("tokens"), st.integers(0, 1), st.integers(0, 3)),
        st.tuples(st.just("delta"), st.integers(0, 1), st.integers(0, 3)),
        st.tuples(st.just("other"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


def history(script: list[tuple[str, int, int]]) -> Iterator[Event]:
    version = 0
    batches, indices = [0, 0], [0, 0]
    for q in "01":
        queued = RequestQueued(request=q, params=SamplingParams(), prompt=[1])
        for payload in (queued, MessageStarted(message=f"m{q}", request=q)):
            version += 1
            request = q if isinstance(payload, RequestQueued) else None
            yield event(version, payload, request=request)
        for name, extra in (("claimed", '"worker":"w"'), ("started", STARTED)):
            version += 1
            data = f'{{"request":"{q}","epoch":1,{extra}}}'.encode()
            base = event(version, MessageDelta(message="", text=""), request=q)
            yield msgspec.structs.replace(base, type=f"request.{name}", data=data)
    for kind, which, n in script:
        version += 1
        if kind == "tokens":
            yield tokens(version, str(which), batches[which], indices[which], n)
            batches[which] += 1
            indices[which] += n
        elif kind == "delta":
            yield event(version, MessageDelta(message=f"d{which}", text="x" * n))
        else:
            yield event(version, MessageStarted(message=f"d{version % 2}"))


STARTED = '"model":"m","weights":"w","prompt_tokens":1'


@settings(max_examples=200)
@example([("other", 0, 0), ("delta", 0, 0), ("delta", 1, 0), ("delta", 1, 0)], [12])
@given(moves, st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_merged_or_not_the_client_arrives_at_the_same_state(
    script: list[tuple[str, int, int]], cuts: list[int]
) -> None:
    events = list(history(script))
    expected = projection.empty(T)
    for one in events:
        projection.apply(expected, one)
    delivery, got, state = Delivery(T, 0, ItemCache()), 0, projection.empty(T)
    for turn in range(10_000):
        batch = events[delivery.cursor : delivery.cursor + cuts[turn % len(cuts)]]
        if not batch:
            break
        for frame in received(delivery, batch):
            assert frame.first == got + 1
            assert frame.items[0].v == frame.first and frame.items[-1].last == frame.last
            for item in frame.items:
                assert item.v == got + 1
                got = item.last
                projection.apply(state, to_event(item, T))
    assert got == len(events)
    assert state == expected

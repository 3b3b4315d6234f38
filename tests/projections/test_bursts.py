"""Bursts of tokens: folding many batches at once comes to the same as one after the other."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.events import catalogue as c
from app.events.envelope import Event
from app.projections import ledger, state
from app.projections.database import connect
from app.projections.folding import Folder, fold
from app.projections.reading import Burst, Item, Unreadable, read
from app.projections.rows import Rows
from app.projections.views import named
from tests.projections.histories import History

TYPES = frozenset(c.CATALOGUE)
STREAMS = {"q0": "thread/t", "q1": "thread/t", "q2": "thread/u", "q3": "request/q3"}

#: A request, the epoch, batch and index of its tokens, their offsets; or another of its events.
_step = st.tuples(
    st.sampled_from(sorted(STREAMS)),
    st.one_of(
        st.tuples(
            st.integers(1, 2),
            st.integers(0, 3),
            st.integers(0, 4),
            st.lists(st.floats(0, 9000), max_size=3),
        ),
        st.sampled_from(
            [
                "request.preempted",
                "request.resumed",
                "request.abandoned",
                "request.claimed",
                "request.started",
                "request.finished",
            ]
        ),
    ),
)


@st.composite
def streaming(draw: st.DrawFn) -> list[Event]:
    """Requests that write tokens in turns, most of them in order, and now and then move on."""
    log = History()
    for request, stream in STREAMS.items():
        if stream.startswith("thread/"):
            log.add(c.MessageStarted(message=f"a{request}", request=request), stream=stream)
        for type in ("request.queued", "request.claimed", "request.started"):
            log.move(request, type, stream=stream)
    for request, what in draw(st.lists(_step, max_size=40)):
        if isinstance(what, str):
            if what in log.legal(request):
                log.move(request, what, stream=STREAMS[request])
            continue
        epoch, back, more, offsets = what
        batch = max(0, log.batches.get(request, 0) - back // 2)
        tokens = c.TokensGenerated(
            request=request,
            epoch=epoch,
            batch=batch,
            index=3 * batch + more,
            tokens=list(range(len(offsets) or back % 2)),
            text=f"{request}.{batch} ",
            offsets=offsets,
        )
        log.batches[request] = batch + 1
        log.add(tokens, stream=STREAMS[request])
    return log.events


def rows_of(events: list[Event], sizes: list[int], *, singly: bool = False) -> dict[str, Any]:
    """All rows after folding the events in chunks of these sizes, flushed after each."""
    connection = connect(":memory:")
    folds = []
    for projection in named(None):
        ledger.create(connection, projection, 1)
        prefix = projection.prefix(1)
        tables, pieces = projection.tables, projection.pieces
        folds.append((projection, Rows(connection, prefix, tables, pieces, fresh=True)))
    start = turn = 0
    while start < len(events):
        some = events[start : start + sizes[turn % len(sizes)]]
        start, turn = start + len(some), turn + 1
        items = (
            [item for event in some for item in read([event], TYPES)]
            if singly
            else read(some, TYPES)
        )
        for projection, rows in folds:
            fold(projection, rows, items)
            rows.flush()
    found = {
        f"{projection.name} {table.name}": sorted(
            connection.all(f"SELECT * FROM {projection.prefix(1)}{table.name}"), key=repr
        )
        for projection, _ in folds
        for table in projection.all_tables
    }
    connection.close()
    return found


@settings(max_examples=150, deadline=None)
@given(streaming(), st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_rows_are_the_same_however_events_are_grouped(
    events: list[Event], sizes: list[int]
) -> None:
    assert rows_of(events, sizes) == rows_of(events, [len(events)], singly=True)


@settings(max_examples=100, deadline=None)
@given(streaming())
def test_bursts_keep_the_order_of_every_stream(events: list[Event]) -> None:
    items = read(events, TYPES)
    found: dict[str, list[Event]] = {}
    for event, payload in items:
        several = payload.events if isinstance(payload, Burst) else [event]
        assert several[0] is event
        found.setdefault(event.stream, []).extend(several)
    assert found == {
        stream: [event for event in events if event.stream == stream]
        for stream in {event.stream for event in events}
    }
    by_stream: dict[str, list[Item]] = {}
    for item in items:
        by_stream.setdefault(item[0].stream, []).append(item)
    for several_items in by_stream.values():
        for (_, one), (_, next) in pairwise(several_items):
            assert not (
                isinstance(one, Burst) and isinstance(next, Burst) and one.request == next.request
            )


@settings(max_examples=50, deadline=None)
@given(streaming(), st.sets(st.integers(0, 60)), st.sampled_from([b"{}", b"\xff", b""]))
def test_batches_that_cannot_be_read_are_passed_over_alone(
    events: list[Event], bad: set[int], data: bytes
) -> None:
    """A damaged one leaves those around it, in its burst or not, as they are."""
    events = [
        msgspec.structs.replace(event, data=data) if at in bad else event
        for at, event in enumerate(events)
    ]
    for stream in set(STREAMS.values()):
        own = [event for event in events if event.stream == stream]
        singly, together = state.empty("t"), state.empty("t")
        for event in own:
            state.apply(singly, event)
        state.apply_all(together, own)
        assert together == singly
    items = read(events, TYPES)
    unreadable = {event.seq for event, payload in items if type(payload) is Unreadable}
    assert unreadable == {event.seq for event in events if event.data == data}


@pytest.mark.parametrize("bad", [2, 5])
def test_the_event_to_blame_in_a_burst_is_told(bad: int) -> None:
    """A fold that fails on one batch stands still before that one, whatever it was folded with."""
    log = History()
    for name in ("t", "u"):
        request = f"q{name}"
        for type in ("request.queued", "request.claimed", "request.started"):
            log.move(request, type, thread=name)
    before = len(log.events)
    for batch in range(8):
        name = "tu"[batch % 2]
        log.move(f"q{name}", "tokens.generated", thread=name)
    projections = named(["requests"])
    tokens = projections[0].folds[Burst]

    def failing(rows: Rows, event: Event, burst: Burst) -> None:
        if any(each.seq == before + bad for each in burst.events):
            raise RuntimeError("no")
        tokens(rows, event, burst)

    projections[0].folds[Burst] = failing
    connection = ledger.open_ledger(":memory:")
    folder = Folder(connection, projections)
    folder.start({}, incarnation="i", head=0)
    standing = folder.fold(0, log.events)["requests"]
    assert standing.seq == before + bad - 1
    assert standing.error == f"event {before + bad} (tokens.generated): RuntimeError('no')"
    batches = connection.all("SELECT sum(batches) FROM requests_1_request")
    assert batches == [(bad - 1,)]
    connection.close()

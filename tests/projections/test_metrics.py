"""The metrics of the log against counting by hand; and that nothing is counted twice."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from app.events import catalogue as c
from app.events.codec import decode
from app.events.envelope import Event
from app.events.lifecycle import TERMINAL, TRANSITIONS
from app.events.memory import MemoryStore
from app.events.redaction import remainder
from app.projections import ledger
from app.projections.database import Where, connect
from app.projections.folding import fold
from app.projections.metrics import COUNT, FAMILIES, FLIGHT, SPREAD, Metrics, counts, spreads
from app.projections.reading import read
from app.projections.rows import Rows
from app.projections.views import Views
from tests.projections.histories import History, histories, write
from tests.support.postgres import Cluster, new_database
from tests.support.projections import assert_rebuild_equals_live

ENDS = {name for name, moves in TRANSITIONS.items() if set(moves.values()) <= TERMINAL}


class Metered:
    """The projection's tables after some events, in one process or in several in turn."""

    def __init__(self, events: list[Event], cuts: int = 7) -> None:
        self.connection = connect(":memory:")
        projection = Metrics()
        ledger.create(self.connection, projection, 1)
        prefix = projection.prefix(1)
        rows = Rows(self.connection, prefix, projection.tables, None, fresh=True)
        for at, event in enumerate(events):
            fold(projection, rows, read([event], projection.types))
            if at % cuts == 0 or at == len(events) - 1:
                rows.flush()
                rows.forget()
        self.counts = {(r.name, r.a, r.b): r.value for r in counts(self.connection, prefix)}
        self.spreads = {(r.name, r.a): r for r in spreads(self.connection, prefix)}
        self.flights = self.connection.all(f"SELECT id FROM {prefix}flight")
        self.connection.close()

    def count(self, name: str, *labels: str) -> int:
        return self.counts.get((name, *labels, *[""] * (2 - len(labels))), 0)

    def values(self, name: str, model: str = "m") -> tuple[int, float]:
        """How many values a histogram has, and their sum."""
        row = self.spreads.get((name, model))
        return (sum(row.counts), row.sum) if row is not None else (0, 0.0)


def by_hand(events: list[Event]) -> tuple[Counter[Any], dict[str, list[float]]]:
    """What the histories' requests amount to, each looked at as a whole."""
    count: Counter[Any] = Counter()
    seen: dict[str, list[float]] = {}
    own: dict[str, list[tuple[Event, Any]]] = {}
    for event in events:
        payload = decode(event)
        if event.request is not None:
            own.setdefault(event.request, []).append((event, payload))
    for story in own.values():
        started = next((p for _, p in story if isinstance(p, c.RequestStarted)), None)
        model = started.model if started else "unknown"
        tokens = [(e, p) for e, p in story if isinstance(p, c.TokensGenerated)]
        if started:
            count["prompt_tokens", model, ""] += started.prompt_tokens
        count["generation_tokens", model, ""] += sum(len(p.tokens) for _, p in tokens)
        count["num_preemptions", model, ""] += sum(e.type == "request.preempted" for e, _ in story)
        if tokens:
            wait = (tokens[0][0].time - story[0][0].time) / 1e9
            seen.setdefault("time_to_first_token_seconds", []).append(wait)
        for (before, a), (after, b) in pairwise(tokens):  # one token a batch, all at 0.5 ms
            gap = 0.0 if a.epoch == b.epoch else (after.time - before.time) / 1e9
            seen.setdefault("inter_token_latency_seconds", []).append(gap)
        event, payload = story[-1]
        if event.type in ENDS:
            reason = {"request.failed": "error", "request.cancelled": "abort"}.get(event.type)
            count["request_success", model, reason or payload.reason] += 1
    return count, seen


@settings(max_examples=60, deadline=None)
@given(histories())
def test_drawn_histories_amount_to_what_they_say(log: History) -> None:
    metered = Metered(log.events)
    count, seen = by_hand(log.events)
    for name in ("prompt_tokens", "generation_tokens", "num_preemptions", "request_success"):
        found = {key: value for key, value in metered.counts.items() if key[0] == name and value}
        assert found == {key: value for key, value in count.items() if key[0] == name and value}
    for name, values in seen.items():
        bounds = FAMILIES[name].bounds
        expected = [0] * (len(bounds) + 1)
        for value in values:
            expected[bisect_left(bounds, value)] += 1
        assert metered.spreads[name, "m"].counts == expected
        assert metered.spreads[name, "m"].sum == pytest.approx(sum(values))
    open_now = {event.request for event in log.events if event.request} - {
        event.request for event in log.events if event.type in ENDS
    }
    assert {id for (id,) in metered.flights} == open_now, "only what is under way has a row"


def story(
    *more: c.Payload, offsets: tuple[tuple[float, ...], ...] = ((0.0,), (20.0, 50.0))
) -> History:
    """Queued at 1 s, claimed and started, then a batch of tokens a second."""
    log = History()
    r: dict[str, Any] = {"request": "q"}
    log.add(c.RequestQueued(**r, params=c.SamplingParams(seed=1, max_tokens=100)))
    log.add(c.RequestClaimed(**r, epoch=1, worker="w"))
    log.add(
        c.RequestStarted(
            **r, epoch=1, model="m", weights="w", prompt_tokens=70, cached_tokens=64, queue_ms=400
        )
    )
    index = 0
    for batch, some in enumerate(offsets):
        tokens = list(range(len(some)))
        log.add(
            c.TokensGenerated(
                **r, epoch=1, batch=batch, index=index, tokens=tokens, text="x", offsets=list(some)
            )
        )
        index += len(some)
    for payload in more:
        log.add(payload)
    return log


FINISHED = c.RequestFinished(
    request="q",
    epoch=1,
    reason="length",
    text="xx",
    usage=c.Usage(
        prompt_tokens=70, completion_tokens=3, cached_tokens=64, draft_tokens=5, accepted_tokens=2
    ),
    timings=c.Timings(queue_ms=400, prefill_ms=600, decode_ms=50),
    batches=2,
    digest="d",
)


def test_one_request_in_numbers() -> None:
    m = Metered(story(FINISHED).events)
    assert m.count("prompt_tokens", "m") == m.count("prefix_cache_queries", "m") == 70
    assert m.count("prefix_cache_hits", "m") == m.count("prompt_tokens_cached", "m") == 64
    assert m.count("generation_tokens", "m") == 3
    assert m.count("spec_decode_num_draft_tokens", "m") == 5
    assert m.count("spec_decode_num_accepted_tokens", "m") == 2
    assert m.count("request_success", "m", "length") == 1
    assert m.values("time_to_first_token_seconds") == (1, 3.0)
    assert m.values("inter_token_latency_seconds") == (2, pytest.approx(0.05))
    assert m.values("e2e_request_latency_seconds") == (1, 5.0)
    assert m.values("request_queue_time_seconds") == (1, pytest.approx(0.4))
    assert m.values("request_prefill_time_seconds") == (1, pytest.approx(0.6))
    assert m.values("request_decode_time_seconds") == (1, pytest.approx(0.05))
    assert m.values("request_inference_time_seconds") == (1, pytest.approx(0.65))
    assert m.values("request_time_per_output_token_seconds") == (1, pytest.approx(0.025))
    assert m.values("request_params_max_tokens") == (1, 100)
    assert m.values("request_prompt_tokens") == (1, 70)
    assert m.values("request_generation_tokens") == (1, 3)


def test_a_request_that_changes_its_worker_is_counted_once() -> None:
    r: dict[str, Any] = {"request": "q"}
    log = story(
        c.RequestAbandoned(**r, epoch=1, worker="w", reason="crash"),
        c.RequestClaimed(**r, epoch=2, worker="v"),
        c.RequestStarted(**r, epoch=2, model="m", weights="w", prompt_tokens=70, queue_ms=9),
        c.TokensGenerated(
            **r, epoch=2, batch=2, index=3, tokens=[4, 5], text="y", offsets=[0.0, 30.0]
        ),
    )
    m = Metered(log.events)
    assert m.count("prompt_tokens", "m") == 70 and m.count("generation_tokens", "m") == 5
    assert m.count("num_abandoned", "m") == 1
    assert m.values("request_queue_time_seconds")[0] == 1
    # 20 and 30 ms, then 4 s without a worker, then 30 ms
    assert m.values("inter_token_latency_seconds") == (4, pytest.approx(4.08))


def test_what_was_erased_is_still_counted() -> None:
    """Only the times between tokens are lost with them."""
    log = story(FINISHED)
    erased = [
        msgspec.structs.replace(event, data=left) if (left := remainder(event)) else event
        for event in log.events
    ]
    before, after = Metered(log.events), Metered(erased)
    assert after.counts == before.counts
    lost = {"inter_token_latency_seconds", "time_to_first_token_seconds"}
    for key in before.spreads.keys() - {(name, "m") for name in lost}:
        assert after.spreads[key] == before.spreads[key], key


@pytest.mark.parametrize("end", ["timeout", "error", "cancelled"])
def test_how_requests_end(end: str) -> None:
    last: c.Payload = c.RequestFailed(request="q", code=end, message="no")
    if end == "cancelled":
        last = c.RequestCancelled(request="q")
    m = Metered(story(last).events)
    assert m.count("request_success", "m", "abort" if end == "cancelled" else end) == 1
    assert not m.flights


async def test_live_equals_rebuilt_and_a_restart_counts_nothing_twice(where: Where) -> None:
    async with MemoryStore() as store:
        await write(store, story(FINISHED).events)
        for _ in range(2):
            async with Views.open(store, where) as views:
                await views.reached(await store.head())
                found, histograms, flights = await views.metrics()
        assert {row.name: row.value for row in found}["generation_tokens"] == 3
        assert {row.name for row in histograms} <= FAMILIES.keys()
        assert flights == []
        await assert_rebuild_equals_live(store, where)


async def test_one_of_two_processes_leads_and_counts(postgres: Cluster) -> None:
    where = await new_database(postgres)
    async with (
        MemoryStore() as store,
        Views.open(store, where) as one,
        Views.open(store, where) as two,
    ):
        await write(store, story(FINISHED).events)
        for views in (one, two):
            await views.reached(await store.head())
            found, _, _ = await views.metrics()
            assert {row.name: row.value for row in found}["generation_tokens"] == 3
        assert [one.leading, two.leading].count(True) == 1


def test_tables_and_families_fit() -> None:
    assert {table.name for table in Metrics.tables} == {COUNT.name, SPREAD.name, FLIGHT.name}
    for family in FAMILIES.values():
        assert family.name.isidentifier() and not family.name.endswith("_total")
        assert list(family.bounds) == sorted(set(family.bounds))
        assert bool(family.bounds) == (family.kind == "histogram")
        assert len(family.labels) <= (2 if family.kind == "counter" else 1)


def test_removed_rows_are_gone_for_good(tmp_path: Path) -> None:
    connection = connect(tmp_path / "views")
    projection = Metrics()
    ledger.create(connection, projection, 1)
    rows = Rows(connection, projection.prefix(1), projection.tables, None, fresh=True)
    for keep in (False, True):
        for event in story().events[:1]:
            fold(projection, rows, read([event], projection.types))
        if keep:
            rows.flush()
        rows.remove(FLIGHT, "q")
        assert rows.get(FLIGHT, "q") is None and rows.changed
        rows.flush()
        assert rows.get(FLIGHT, "q") is None and not rows.changed
        assert connection.all("SELECT id FROM metrics_1_flight") == []
    rows.remove(FLIGHT, "q")
    fold(projection, rows, read(story().events[:1], projection.types))
    rows.flush()
    assert connection.all("SELECT id FROM metrics_1_flight") == [("q",)]
    connection.close()

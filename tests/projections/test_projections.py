"""The projections against the fold of states, and rebuilt tables against those kept live."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.chat.jobs import waits
from app.events import catalogue as c
from app.events.memory import MemoryStore
from app.projections import ledger, queries
from app.projections.database import Where, connect
from app.projections.folding import fold
from app.projections.reading import read
from app.projections.rows import Rows
from app.projections.state import ThreadState, apply, empty
from app.projections.views import Span, Views, named
from tests.projections.histories import BY_HAND, SECOND, History, histories, write
from tests.support.postgres import Cluster
from tests.support.projections import assert_rebuild_equals_live, dump


class Folded:
    """All projections folded in memory, with everything forgotten after some events."""

    def __init__(self, log: History, cuts: set[int], where: Where = ":memory:") -> None:
        self.connection = connect(where)
        folds = []
        for projection in named(None):
            ledger.create(self.connection, projection, 1)
            prefix = projection.prefix(1)
            rows = Rows(self.connection, prefix, projection.tables, projection.pieces, fresh=True)
            folds.append((projection, rows))
        for at, event in enumerate(log.events):
            for projection, rows in folds:
                fold(projection, rows, read([event], projection.types))
                if at in cuts or at == len(log.events) - 1:
                    rows.flush()
                    rows.forget()

    def select(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return self.connection.all(sql, *values)


def assert_same(log: History, cuts: set[int], where: Where = ":memory:") -> None:
    folded = Folded(log, cuts, where)
    for thread in ("t", "u"):
        state = empty(thread)
        for event in log.events:
            if event.stream == f"thread/{thread}":
                apply(state, event)
        if state.version:
            _assert_same_history(state, folded)
            _assert_same_spans(state, folded)
            _assert_same_requests(state, folded)
            _assert_waiting_is_found(state, folded)
    folded.connection.close()


def _assert_same_history(s: ThreadState, folded: Folded) -> None:
    (thread,) = folded.select(
        "SELECT owner, title, version, deleted, created, updated FROM history_1_thread"
        " WHERE id = ?",
        s.id,
    )
    assert thread == (s.owner, s.title, s.version, s.deleted, s.created, s.updated)
    messages = folded.select(
        "SELECT id, role, status, CASE WHEN ended IS NOT NULL THEN text END, run, request, version,"
        " created, ended, edited, feedback FROM history_1_message WHERE thread = ? ORDER BY first",
        s.id,
    )
    assert messages == [
        (
            m.id,
            m.role,
            m.status,
            None if m.ended is None else m.content,
            m.run,
            m.request,
            m.version,
            m.created,
            m.ended,
            m.edited,
            m.feedback.value if m.feedback else 0,
        )
        for m in s.messages
    ]
    runs = folded.select("SELECT id, status, node, ended FROM history_1_run WHERE thread = ?", s.id)
    assert sorted(runs) == sorted((r.id, r.status, r.node, r.ended) for r in s.runs)

    growing = {m.id for m in s.messages if m.ended is None}
    growing |= {r.id for r in s.requests if r.ended is None}
    pieces = folded.select("SELECT id FROM history_1_piece WHERE stream = ?", f"thread/{s.id}")
    assert {id for (id,) in pieces} <= growing, "pieces of a whole text are dropped"


def _assert_same_spans(s: ThreadState, folded: Folded) -> None:
    def spans_of(kind: str) -> list[tuple[Any, ...]]:
        return folded.select(
            'SELECT id, status, start, "end", first FROM timeline_1_span WHERE stream = ? AND'
            " kind = ? AND status <> 'removed' ORDER BY position",
            f"thread/{s.id}",
            kind,
        )

    removed = {m.id for m in s.messages if m.status == "removed"}
    assert [span for span in spans_of("message") if span[0] not in removed] == [
        (m.id, m.status, m.created, m.ended, m.first_token)
        for m in s.messages
        if m.id not in removed
    ]
    assert spans_of("run") == [(r.id, r.status, r.started, r.ended, None) for r in s.runs]
    assert spans_of("step") == [(r.id, r.status, r.started, r.ended, None) for r in s.steps]
    assert spans_of("request") == [
        (r.id, r.state, r.queued, r.ended, r.first_token) for r in s.requests
    ]


def _assert_same_requests(s: ThreadState, folded: Folded) -> None:
    requests = folded.select(
        "SELECT id, state, epoch, run, worker, batches, reason, queued, claimed, started,"
        " first_token, ended FROM requests_1_request WHERE thread = ? ORDER BY seq",
        s.id,
    )
    assert requests == [
        (
            r.id,
            r.state,
            r.epoch,
            r.run,
            r.worker,
            r.batches,
            r.reason,
            r.queued,
            r.claimed,
            r.started,
            r.first_token,
            r.ended,
        )
        for r in s.requests
    ]


def _assert_waiting_is_found(s: ThreadState, folded: Folded) -> None:
    found = queries.waiting_threads(folded.connection, {"history": "history_1_"}, since=s.updated)
    begun = {run.message for run in s.runs}
    asked = [m for m in s.messages if m.role == "user" and m.run is None and m.status != "removed"]
    expected = bool(s.runs and not s.deleted and asked and asked[-1].id not in begun)
    assert (s.id in found) == expected
    assert expected or not waits(s)
    late = queries.waiting_threads(
        folded.connection, {"history": "history_1_"}, since=s.updated + 1
    )
    assert s.id not in late


@settings(max_examples=400, deadline=None)
@given(log=histories(), cuts=st.sets(st.integers(0, 60), max_size=6))
def test_rows_are_the_fold_of_states(log: History, cuts: set[int]) -> None:
    assert_same(log, cuts)


@pytest.mark.parametrize("history", BY_HAND)
def test_rows_are_the_fold_of_states_in_histories_by_hand(
    history: Callable[[History], None],
) -> None:
    log = History()
    history(log)
    for cut in range(len(log.events)):
        assert_same(log, {cut})


@pytest.mark.parametrize("history", BY_HAND)
def test_rows_are_the_fold_of_states_in_postgres(
    history: Callable[[History], None], postgres: Cluster
) -> None:
    log = History()
    history(log)
    assert_same(log, {*range(0, len(log.events), 3)}, postgres.new_database())


@settings(max_examples=50, deadline=None)
@given(log=histories(), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
async def test_rebuilt_equals_live(log: History, sizes: list[int]) -> None:
    """Live: any batches, with a restart between any two of them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "views"
        async with MemoryStore() as store:
            done = 0
            for turn in range(len(log.events)):
                size = sizes[turn % len(sizes)] * (1 + turn)
                await write(store, log.events[done : done + size])
                done += size
                if done >= len(log.events) or turn < 3:
                    async with Views.open(store, path) as views:
                        await views.reached(await store.head())
                if done >= len(log.events):
                    break
            await assert_rebuild_equals_live(store, path)


async def spans(log: History, where: Where | None = None) -> list[Span]:
    async with MemoryStore() as store, Views.open(store, where) as views:
        await write(store, log.events)
        await views.reached(await store.head())
        return await views.timeline("t")


async def test_phases_of_a_request_follow_each_other_without_a_gap(where: Where) -> None:
    log = History()
    log.ask()
    log.generate("q1", "a", "b")
    log.move("q1", "request.preempted")
    log.move("q1", "request.resumed")
    log.generate("q1", "c")
    log.move("q1", "request.abandoned")
    log.generate("q1", "d")
    log.move("q1", "request.finished", text="abcd")
    found = await spans(log, where)
    phases = [span for span in found if span.kind == "phase"]
    assert [(p.name, p.detail["tokens"]) for p in phases] == [
        ("queue", 0),
        ("prefill", 0),
        ("decode", 2),
        ("preempted", 0),
        ("prefill", 0),
        ("decode", 1),
        ("queue", 0),
        ("prefill", 0),
        ("decode", 1),
    ]
    assert [p.start for p in phases[1:]] == [p.end for p in phases[:-1]]
    assert {p.parent for p in phases} == {"q1"}
    (request,) = (span for span in found if span.kind == "request")
    assert (request.status, request.parent, request.detail["tokens"]) == ("finished", "r1", 4)
    assert (request.start, request.end) == (phases[0].start, phases[-1].end)
    (answer,) = (span for span in found if span.id == "a1")
    assert answer.detail["first_token"] == phases[2].start == request.detail["first_token"]
    assert (answer.status, answer.end, answer.parent) == ("done", request.end, "r1")


async def test_steps_stand_under_their_run_and_requests_under_their_step(
    where: Where,
) -> None:
    log = History()
    log.add(c.RunStarted(run="r1", hook="on_message", node="n"))
    log.add(c.StepStarted(step="s1", name="plan"), run="r1")
    log.add(c.StepStarted(step="s2", name="llm", parent="s1", request="q1"), run="r1")
    log.move("q1", "request.queued", run="r1")
    log.move("q2", "request.queued", run="r1")
    log.add(c.StepStarted(step="s3", name="llm", request="q2"), run="r1")
    log.add(c.StepCompleted(step="s2"), run="r1")
    log.add(c.RunInterrupted(run="r1", reason="crash"))
    found = {span.id: span for span in await spans(log, where)}
    parents = {id: found[id].parent for id in ("r1", "s1", "s2", "q1", "s3", "q2")}
    expected = {"r1": None, "s1": "r1", "s2": "s1", "q1": "s2", "s3": "r1", "q2": "s3"}
    assert parents == expected
    statuses = {id: found[id].status for id in ("r1", "s1", "s2", "s3")}
    interrupted = {"r1": "interrupted", "s1": "interrupted", "s3": "interrupted"}
    assert statuses == {**interrupted, "s2": "completed"}
    assert found["s1"].end == found["r1"].end == len(log.events) * SECOND
    assert found["r1"].detail["reason"] == "crash"


async def test_requests_outside_conversations_have_rows(where: Where) -> None:
    log = History()
    log.move("q1", "request.queued", stream="request/q1")
    log.move("q1", "request.claimed", stream="request/q1")
    log.move("q1", "request.started", stream="request/q1")
    log.move("q1", "tokens.generated", stream="request/q1")
    log.ask(2)
    async with MemoryStore() as store, Views.open(store, where) as views:
        await write(store, log.events)
        await views.reached(len(log.events))
        in_thread, alone = await views.requests()
        (running,) = await views.requests(state="running")
        (one,) = await views.requests(limit=1)
    assert running == alone and one == in_thread
    assert (alone.thread, alone.stream, alone.worker) == (None, "request/q1", "w")
    assert (alone.prompt_tokens, alone.completion_tokens, alone.queue_ms) == (7, 1, 1.5)
    assert alone.first_token is not None and alone.ended is None
    assert (in_thread.thread, in_thread.run, in_thread.state) == ("t", "r2", "queued")


async def test_text_of_a_failed_request_is_joined_from_its_batches(where: Where) -> None:
    log = History()
    log.ask()
    log.generate("q1", "one ", "two ")
    async with MemoryStore() as store:
        async with Views.open(store, where) as views:
            await write(store, log.events)
            await views.reached(len(log.events))
        assert [row[-1] for row in dump(where)["history piece"]] == ["one ", "two "]
        cut = len(log.events)
        log.generate("q1", "three")
        log.move("q1", "request.failed", text="broken")
        async with Views.open(store, where) as views:
            await write(store, log.events[cut:])
            await views.reached(len(log.events))
            row = await views.thread("t")
        assert row is not None and row.preview == "one two three"
        assert dump(where)["history piece"] == []
        await assert_rebuild_equals_live(store, where)

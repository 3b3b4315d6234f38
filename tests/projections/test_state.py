"""The fold of a conversation."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.events import catalogue as c
from app.events.memory import MemoryStore
from app.projections.state import ThreadState, apply, apply_all, derive_title, empty, load
from tests.projections.histories import (
    History,
    answered,
    bound_late,
    edited,
    failed,
    histories,
    interrupted,
    never_queued,
    preempted,
    repeated,
    stopped,
    streaming,
    went_on,
    write,
)


def fold(log: History, thread: str = "t", upto: int | None = None) -> ThreadState:
    state = empty(thread)
    for event in log.events[:upto]:
        if event.stream == f"thread/{thread}":
            apply(state, event)
    return state


def statuses(state: ThreadState) -> dict[str, str]:
    found = {m.id: m.status for m in state.messages} | {r.id: r.status for r in state.runs}
    return found | {s.id: s.status for s in state.steps} | {r.id: r.state for r in state.requests}


def contents(state: ThreadState) -> dict[str, str]:
    return {m.id: m.content for m in state.messages}


@pytest.mark.parametrize(
    ("history", "status", "content"),
    [
        (answered, {"a1": "done", "r1": "completed", "q1": "finished"}, {"a1": "Paris"}),
        (streaming, {"a1": "streaming", "r1": "running", "q1": "running"}, {"a1": "Par"}),
        (failed, {"a1": "failed", "r1": "failed", "q1": "failed"}, {"a1": "Par"}),
        (
            stopped,
            {"a1": "stopped", "m1": "stopped", "s1": "stopped", "r1": "stopped", "q1": "cancelled"},
            {"a1": "Par", "m1": "so far"},
        ),
        (
            interrupted,
            {"a1": "streaming", "m1": "interrupted", "s1": "interrupted", "r1": "interrupted"},
            {"a1": "Par", "m1": "so f"},
        ),
        (went_on, {"a1": "done", "r1": "interrupted", "q1": "finished"}, {"a1": "Paris"}),
        (preempted, {"a1": "streaming", "q1": "running"}, {"a1": "Paris"}),
        (bound_late, {"a1": "done", "a2": "done"}, {"a1": "Paris", "a2": "Paris"}),
        (never_queued, {"a1": "interrupted"}, {"a1": ""}),
        (repeated, {"a1": "streaming", "q1": "running"}, {"a1": "Paris"}),
        (edited, {"a1": "done", "u1": "removed"}, {"a1": "Mine", "u1": ""}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_histories(
    history: Callable[[History], None], status: dict[str, str], content: dict[str, str]
) -> None:
    log = History()
    history(log)
    state = fold(log)
    assert statuses(state).items() >= status.items()
    assert contents(state).items() >= content.items()


def test_details_of_an_answer() -> None:
    log = History()
    answered(log)
    state = fold(log)
    (request,), (run,) = state.requests, state.runs
    assert (state.owner, state.title, state.version) == ("local", "question 1", len(log.events))
    assert (request.tokens, request.batches, request.reason) == ([0, 1], 2, "stop")
    assert request.usage is not None and request.usage.completion_tokens == 2
    assert request.timings is not None and request.timings.decode_ms == 3
    times = [request.queued, request.claimed, request.started, request.first_token, request.ended]
    assert times == sorted(times, key=lambda t: t or 0) and None not in times
    assert (run.message, run.node, run.hook) == ("u1", "n1", "on_message")
    assert state.messages[1].first_token == request.first_token
    assert state.messages[1].ended == request.ended


def test_thread_facts() -> None:
    log = History()
    log.add(c.ThreadCreated(owner="ann", title="First", metadata={"k": 1}))
    log.add(c.ThreadCreated(owner="bob"))
    log.add(c.ThreadForked(source="other", version=4))
    log.add(c.ThreadShared(shared=True))
    log.add(c.ThreadSettingsChanged(settings={"temperature": 1}))
    log.add(c.SessionChanged(values={"a": 1, "b": [2]}))
    log.add(c.SessionChanged(values={"c": None}, removed=["a"]))
    log.add(c.MessagePosted(message="m", role="user", content="hello", parent="p"))
    log.add(c.MessageFeedback(message="m", value=1, comment="good"))
    log.add(c.ThreadRenamed(title="Second"))
    state = fold(log)
    assert (state.owner, state.title, state.metadata) == ("ann", "Second", {"k": 1})
    assert (state.source, state.source_version, state.shared) == ("other", 4, True)
    assert state.settings == {"temperature": 1}
    assert state.session == {"b": [2], "c": None}
    (message,) = state.messages
    assert message.parent == "p" and message.feedback is not None
    assert (message.feedback.value, message.feedback.comment) == (1, "good")
    log.add(c.MessageFeedback(message="m", value=0))
    log.add(c.ThreadDeleted())
    state = fold(log)
    assert state.deleted and state.messages[0].feedback is None


def test_steps_make_a_tree_and_record_errors() -> None:
    log = History()
    log.add(c.RunStarted(run="r", hook="on_message", node="n"))
    log.add(c.StepStarted(step="a", name="outer", input={"x": 1}), run="r")
    log.add(c.StepStarted(step="b", name="inner", parent="a", kind="tool"), run="r")
    log.add(c.StepDelta(step="b", text="some "), run="r")
    log.add(c.StepDelta(step="b", text="text"), run="r")
    log.add(c.StepCompleted(step="b"), run="r")
    log.add(c.StepFailed(step="a", error=c.ErrorInfo(kind="ValueError", message="bad")), run="r")
    outer, inner = fold(log).steps
    assert (inner.parent, inner.output, inner.status) == ("a", "some text", "completed")
    assert outer.status == "failed" and outer.error is not None and outer.error.message == "bad"


def test_what_cannot_be_understood_moves_only_the_position() -> None:
    log = History()
    answered(log)
    before = msgspec.to_builtins(fold(log))
    log.raw("thread/t", "weather.changed", b'{"sun": true}')
    log.raw("thread/t", "message.posted", b'{"schema": "newer"}', schema=9)
    log.raw("thread/t", "message.posted", b"null")
    log.raw("thread/t", "message.posted", b'"\xff')
    log.raw("thread/t", "tokens.generated", b"")
    after = msgspec.to_builtins(fold(log))
    moved = {key for key in before if before[key] != after[key]}
    assert moved == {"version", "seq", "updated"}


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("", None),
        (" \n\t ", None),
        ("What is\nthe capital?", "What is the capital?"),
        ("word " * 30, "word " * 11 + "word…"),
        ("x" * 100, "x" * 60 + "…"),
        ("x" * 60, "x" * 60),
    ],
)
def test_derived_titles(text: str, title: str | None) -> None:
    assert derive_title(text) == title


@settings(max_examples=150, deadline=None)
@given(log=histories(), cut=st.integers(0, 60))
def test_fold_of_prefix_and_rest_is_fold_of_all(log: History, cut: int) -> None:
    state = fold(log, upto=cut)
    encoded = msgspec.json.encode(state)
    state = msgspec.json.decode(encoded, type=ThreadState)
    assert msgspec.json.encode(state) == encoded
    for event in log.events[cut:]:
        if event.stream == "thread/t":
            apply(state, event)
    assert state == fold(log)
    assert msgspec.json.encode(state) == msgspec.json.encode(fold(log))


@settings(deadline=None)
@given(log=histories(), sizes=st.lists(st.integers(1, 9), max_size=20))
def test_many_at_once_is_one_by_one(log: History, sizes: list[int]) -> None:
    for thread in ("t", "u"):
        events = [event for event in log.events if event.stream == f"thread/{thread}"]
        state, start = empty(thread), 0
        for size in [*sizes, len(events)]:
            apply_all(state, events[start : start + size])
            start += size
        assert state == fold(log, thread)


@settings(max_examples=40, deadline=None)
@given(log=histories(), at=st.integers(0, 61))
async def test_load_at_a_seq_is_the_fold_of_the_prefix(log: History, at: int) -> None:
    async with MemoryStore() as store:
        await write(store, log.events)
        for thread in ("t", "u"):
            expected = fold(log, thread, upto=at)
            assert await load(store, thread, at=at) == (expected if expected.version else None)
            whole = fold(log, thread)
            assert await load(store, thread) == (whole if whole.version else None)


def test_ten_thousand_events_fold_fast() -> None:
    log = History()
    log.ask()
    log.generate("q1", *[" word"] * 10_000)
    fold(log, upto=1000)  # decoders are made on first use
    began = time.perf_counter()
    state = fold(log)
    elapsed = time.perf_counter() - began
    assert state.messages[1].content == " word" * 10_000
    assert elapsed < 0.5, f"{elapsed * 1000:.0f} ms"  # about 40 ms on an idle machine

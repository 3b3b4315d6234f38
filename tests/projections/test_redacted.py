"""Folds of redacted events: the same conversation, without its content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings

from app.events import catalogue as c
from app.events.envelope import Event
from app.events.erasure import plan_threads, redact
from app.events.memory import MemoryStore
from app.events.redaction import remainder
from app.projections.state import ThreadState, apply, empty
from app.projections.views import Span, Views
from tests.projections.histories import History, answered, histories, write
from tests.support.projections import assert_rebuild_equals_live

#: Content, wherever it shows in a state.
CONTENT = {
    *("title", "content", "author", "metadata", "settings", "session", "name", "input", "output"),
    *("text", "tokens", "message", "comment", "stop", "stop_token_ids", "traceback"),
}


def redacted(events: Sequence[Event]) -> list[Event]:
    left = [(event, remainder(event)) for event in events]
    return [
        event if data is None else msgspec.structs.replace(event, data=data) for event, data in left
    ]


def folded(events: Sequence[Event]) -> ThreadState:
    state = empty("t")
    for event in events:
        if event.stream == "thread/t":
            apply(state, event)
    return state


def shape(value: Any) -> Any:
    """What is no content."""
    if isinstance(value, list):
        return [shape(part) for part in value]
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items() if key not in CONTENT}
    return value


@settings(deadline=None)
@given(log=histories())
def test_a_state_keeps_its_shape(log: History) -> None:
    before, after = folded(log.events), folded(redacted(log.events))
    assert shape(msgspec.to_builtins(after)) == shape(msgspec.to_builtins(before))


def shapes(spans: Sequence[Span]) -> list[Any]:
    return [
        (s.id, s.kind, s.parent, s.start, s.end, s.status, s.detail.keys(), s.detail.get("worker"))
        for s in spans
    ]


@settings(deadline=None, max_examples=25)
@given(log=histories(40))
async def test_projections_fold_what_is_left(log: History) -> None:
    found = []
    for events in (log.events, redacted(log.events)):
        async with MemoryStore() as store, Views.open(store, None) as views:
            await write(store, events)
            await views.reached(await store.head())
            assert all(point.error is None for point in await views.checkpoints())
            found.append(shapes(await views.timeline("t")))
    assert found[0] == found[1]


async def test_read_models_are_corrected_by_a_rebuild(tmp_path: Path) -> None:
    path, log = tmp_path / "views", History()
    answered(log)
    log.add(c.MessagePosted(message="m", role="user", content="question 2"), thread="u")
    async with MemoryStore() as store, Views.open(store, path) as views:
        await write(store, log.events)
        await views.reached(await store.head())
        assert len(await views.threads(owner=None, search="question")) == 2
        done = await redact(store, await plan_threads(store, ["t"]), reason="asked for")
        await views.rebuild()
        await views.reached(done.records[-1])
        assert [row.id for row in await views.threads(owner=None, search="question")] == ["u"]
        row = await views.thread("t")
        assert row is not None and (row.title, row.preview) == ("[redacted]", "[redacted]")
        await assert_rebuild_equals_live(store, path)

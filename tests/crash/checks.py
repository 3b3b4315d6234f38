"""What must hold of a log, whatever happened to the processes that wrote it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from app.events.envelope import Event, thread_stream
from app.events.open import open_store
from app.events.verify import verify
from app.projections.database import Where
from tests.crash.watcher import TERMINAL, Watcher, data, text
from tests.support.projections import assert_rebuild_equals_live

ENDED = {"request.finished", "request.failed", "request.cancelled"}
"""How a request ends."""


async def check_log(database: Path | str, watchers: Sequence[Watcher]) -> list[Event]:
    """Check a log that nobody writes any more against what its clients were told; its events.

    Args:
        database: A SQLite file, or a Postgres URL.
        watchers: All who posted, and all who followed.

    """
    url = f"sqlite:///{database}" if isinstance(database, Path) else database
    views: Where = f"{database}.views" if isinstance(database, Path) else database
    async with open_store(url) as store:
        report = await verify(store)
        assert report.ok, report.problems
        events = [event async for event in store.read()]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert await store.leases() == [], "requests are still open"
        await assert_rebuild_equals_live(store, views)
    for thread in {watcher.thread for watcher in watchers}:
        log = [event for event in events if event.stream == thread_stream(thread)]
        assert [event.version for event in log] == list(range(1, len(log) + 1))
        mine = [watcher for watcher in watchers if watcher.thread == thread]
        for watcher in mine:
            check_shown(watcher, log)
        check_acks(mine, log)
        check_runs(log)
        check_requests(log)
    return events


def check_shown(watcher: Watcher, log: list[Event]) -> None:
    """Everything shown is in the log, in order, once; nothing between was left out."""
    position = 0
    for item in watcher.items:
        assert item.v == position + 1, f"shown {item.v} after {position}"
        covered = log[position : item.last]
        assert covered, f"{item.type} at {item.v} was shown but is not in the log"
        assert covered[-1].seq == item.seq
        assert {event.type for event in covered} == {item.type}
        if item.to is None:
            assert bytes(item.data) == covered[0].data
        else:
            assert text(item.data) == "".join(text(event.data) for event in covered)
        position = item.last


def check_acks(watchers: Sequence[Watcher], log: list[Event]) -> None:
    """Every acknowledged post is in the log, once, where the acknowledgement says."""
    acks = {ack.id: ack for watcher in watchers for ack in watcher.acks}
    posts = Counter(
        event.cause
        for event in log
        if event.type == "message.posted" and event.actor.startswith("user:")
    )
    assert posts == Counter(acks.keys()), "an acknowledged post is missing or there twice"
    for ack in acks.values():
        assert log[ack.version - 1].seq == ack.seq
        assert ack.id in [event.cause for event in log[: ack.version]]


def check_runs(log: list[Event]) -> None:
    """Each message has one run, one at a time; each run ends once, and then says nothing more."""
    begun: list[str] = []
    ended: dict[str, Event] = {}
    for event in log:
        if event.type == "run.started":
            assert set(begun) == set(ended), f"two runs at once: {event.run} at {event.version}"
            assert event.run is not None and event.run not in begun
            begun.append(event.run)
        elif event.type in TERMINAL:
            assert event.run is not None and event.run not in ended, "a run ended twice"
            ended[event.run] = event
        elif event.run in ended and event.request is None:
            end = ended[event.run]
            if end.type == "run.stopped" and event.type == "session.changed":
                continue  # what the handler had kept until it was stopped
            raise AssertionError(
                f"{event.type} at {event.version} after {end.type} at {end.version} of its run"
            )
    assert set(begun) == set(ended), "a run has not ended"
    answered = [data(event)["message"] for event in log if event.type == "run.started"]
    asked = [
        data(event)["message"]
        for event in log
        if event.type == "message.posted" and event.actor.startswith("user:")
    ]
    assert answered == asked
    check_messages(log)


def check_messages(log: list[Event]) -> None:
    """The text of a message that was completed is its deltas, joined."""
    said: dict[str, str] = {}
    for event in log:
        if event.type == "message.delta":
            payload = data(event)
            said[payload["message"]] = said.get(payload["message"], "") + payload["text"]
        elif event.type == "message.completed":
            payload = data(event)
            if payload.get("content") and payload["message"] in said:
                assert payload["content"] == said[payload["message"]]


def check_requests(log: list[Event]) -> None:
    """No request was run by two: what an epoch wrote stands before the next claim."""
    requests = {event.request for event in log if event.request is not None}
    for request in requests:
        check_request([event for event in log if event.request == request])


def check_request(events: list[Event]) -> None:
    """One request from ``request.queued`` to its one end."""
    assert events[0].type == "request.queued"
    assert [event.type in ENDED for event in events] == [False] * (len(events) - 1) + [True]
    epoch = 0
    batches: list[str] = []
    tokens = 0
    for event in events[1:]:
        payload = data(event)
        if event.type == "request.claimed":
            assert payload["epoch"] == epoch + 1
            epoch += 1
        elif event.type != "request.cancelled":
            assert payload.get("epoch", 0) == epoch, f"{event.type} of {payload}, now {epoch}"
        if event.type == "tokens.generated":
            assert (payload["batch"], payload["index"]) == (len(batches), tokens)
            batches.append(payload["text"])
            tokens += len(payload["tokens"])
    last = json.loads(events[-1].data)
    if events[-1].type == "request.finished":
        assert last["text"] == "".join(batches)
        assert last["digest"] == sha256("".join(batches).encode()).hexdigest()
        assert last["usage"]["completion_tokens"] == tokens

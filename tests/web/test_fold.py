"""The reducer in the browser and the fold on the server come to the same state."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec

from app.events import catalogue as c
from app.events.codec import new
from app.events.envelope import Event, thread_stream
from app.events.redaction import remainder
from app.projections import state as projection
from app.transport.items import ItemCache, merge

THREAD = "t"
IDS = ["a", "b", "c"]
ERROR = c.ErrorInfo(kind="ValueError", message="no", traceback="line 1")
USAGE = c.Usage(prompt_tokens=3, completion_tokens=2)


def payload(draw: random.Random) -> c.Payload:
    """One event of any type about one of few ids, so that odd histories are frequent."""
    one, two = draw.choice(IDS), draw.choice(IDS)
    text = draw.choice(["Hi", " there ", "é😀", "word " * 30, ""])
    value: Any = draw.choice([None, "x", 3, {"k": [1, None]}])
    epoch, batch = draw.randint(1, 2), draw.randint(0, 3)
    makers: list[Callable[[], c.Payload]] = [
        lambda: c.ThreadCreated(owner="local", title=draw.choice([None, "T"]), metadata={"a": 1}),
        lambda: c.ThreadRenamed(title=text),
        lambda: c.ThreadForked(source="s", version=4),
        lambda: c.ThreadShared(shared=draw.random() < 0.5),
        lambda: c.ThreadSettingsChanged(settings={"s": value}),
        lambda: c.ThreadMetadataChanged(metadata={"m": value}),
        lambda: c.ThreadDeleted(),
        lambda: c.SessionChanged(values={one: value}, removed=[two]),
        lambda: c.MessagePosted(message=one, role=draw.choice(["user", "assistant"]), content=text),
        lambda: c.MessageStarted(message=one, request=draw.choice([None, two]), author="A"),
        lambda: c.MessageDelta(message=one, text=text),
        lambda: c.MessageCompleted(message=one, content=draw.choice([None, text])),
        lambda: c.MessageEdited(message=one, content=text, metadata={"e": value}),
        lambda: c.MessageRemoved(message=one),
        lambda: c.MessageFeedback(message=one, value=draw.choice([-1, 0, 1]), comment="c"),
        lambda: c.RunStarted(run=one, hook="on_message", node="n", resumable=True),
        lambda: c.RunCompleted(run=one),
        lambda: c.RunFailed(run=one, error=ERROR),
        lambda: c.RunStopped(run=one),
        lambda: c.RunInterrupted(run=one, reason="crash"),
        lambda: c.RunResumed(run=one, node="n2"),
        lambda: c.StepStarted(step=one, name="look", kind="tool", parent=two, input=value),
        lambda: c.StepDelta(step=one, text=text),
        lambda: c.StepCompleted(step=one, output=value),
        lambda: c.StepFailed(step=one, error=ERROR, output=value),
        lambda: c.RequestQueued(request=one, params=c.SamplingParams(temperature=0.5, seed=1)),
        lambda: c.RequestQueued(
            request=one,
            params=c.SamplingParams(),
            tools=[{"type": "function", "function": {"name": text}}, {"function": None}, {}],
            metadata=draw.choice([{}, {"forced": True}]),
        ),
        lambda: c.RequestQueued(
            request=one,
            params=c.SamplingParams(),
            embed=c.Embedding(dimensions=draw.choice([2, None])),
        ),
        lambda: c.RequestClaimed(request=one, epoch=epoch, worker="w"),
        lambda: c.RequestStarted(
            request=one,
            epoch=epoch,
            model="m",
            weights="x",
            prompt_tokens=3,
            waited_for=draw.choice([[], ["room", "batch"]]),
        ),
        lambda: c.RequestEmbedded(
            request=one, epoch=epoch, vector="AAAAPwAAAD8=", dimensions=2, pooling="mean"
        ),
        lambda: c.RequestPreempted(request=one, epoch=epoch, reason="r"),
        lambda: c.RequestResumed(request=one, epoch=epoch),
        lambda: c.TokensGenerated(
            request=one, epoch=epoch, batch=batch, index=batch, tokens=[batch, 7], text=text
        ),
        lambda: c.RequestFinished(
            request=one,
            epoch=epoch,
            reason="stop",
            text=text,
            usage=USAGE,
            timings=c.Timings(decode_ms=2.5),
            batches=1,
            digest="d",
        ),
        lambda: c.RequestFailed(request=one, code="error", message="m"),
        lambda: c.RequestCancelled(request=one, text=draw.choice([None, text])),
        lambda: c.RequestAbandoned(request=one, epoch=epoch, worker="w", reason="r"),
    ]
    return draw.choice(makers)()


def stream(seed: int) -> list[Event]:
    """A random history. Times are small, so that JavaScript reads them exactly."""
    draw = random.Random(seed)
    events: list[Event] = []
    for version in range(1, draw.randint(2, 120)):
        made = new(payload(draw), actor="x", run=draw.choice([None, *IDS]))
        events.append(
            Event(
                seq=version * 3,
                stream=thread_stream(THREAD),
                version=version,
                type=made.type,
                schema=made.schema,
                time=version * 1000,
                actor=made.actor,
                request=made.request,
                run=made.run,
                cause=None,
                data=made.data,
            )
        )
    return events


def generation(seed: int) -> list[Event]:
    """An orderly answer of many token batches, for merging."""
    draw = random.Random(seed)
    parts: list[c.Payload] = [
        c.RequestQueued(request="q", params=c.SamplingParams()),
        c.MessageStarted(message="m", request="q"),
        c.RequestClaimed(request="q", epoch=1, worker="w"),
        c.RequestStarted(request="q", epoch=1, model="m", weights="x", prompt_tokens=3),
    ]
    parts += [
        c.TokensGenerated(
            request="q", epoch=1, batch=i, index=i, tokens=[i], text=draw.choice("abc ")
        )
        for i in range(draw.randint(10, 60))
    ]
    return [
        Event(
            seq=version,
            stream=thread_stream(THREAD),
            version=version,
            type=made.type,
            schema=made.schema,
            time=version * 1000,
            actor="engine:w",
            request="q",
            run=None,
            cause=None,
            data=made.data,
        )
        for version, made in enumerate(
            (new(part, actor="engine:w", request="q") for part in parts), start=1
        )
    ]


def server_fold(events: list[Event]) -> Any:
    state = projection.empty(THREAD)
    for event in events:
        projection.apply(state, event)
    return json.loads(msgspec.json.encode(state))


def browser_fold(npm: Callable[..., str], cases: list[list[Any]]) -> list[Any]:
    states: list[Any] = json.loads(npm("run", "--silent", "fold", stdin=json.dumps(cases)))
    return states


def items(events: list[Event], *, merged: bool) -> list[Any]:
    cache = ItemCache()
    if merged:
        return [json.loads(data) for _, data in merge(events, cache)]
    return [json.loads(cache.encode(event)) for event in events]


def test_random_histories(npm: Callable[..., str]) -> None:
    """Also odd ones: unknown ids, illegal transitions, repeated starts."""
    streams = [stream(seed) for seed in range(400)]
    folded = browser_fold(npm, [items(events, merged=False) for events in streams])
    for seed, (events, state) in enumerate(zip(streams, folded, strict=True)):
        assert state == server_fold(events), f"seed {seed}"


def test_redacted_histories(npm: Callable[..., str]) -> None:
    """The browser folds what is left of redacted events as the server does."""
    streams = [[_redacted(event) for event in stream(seed)] for seed in range(100)]
    folded = browser_fold(npm, [items(events, merged=False) for events in streams])
    for seed, (events, state) in enumerate(zip(streams, folded, strict=True)):
        assert state == server_fold(events), f"seed {seed}"


def _redacted(event: Event) -> Event:
    data = remainder(event)
    return event if data is None else msgspec.structs.replace(event, data=data)


def test_merged_items(npm: Callable[..., str]) -> None:
    """What a lagging client gets says the same in fewer items; only times of text differ."""
    streams = [generation(seed) for seed in range(20)]
    cases = [items(events, merged=True) for events in streams]
    assert all(len(case) < len(events) for case, events in zip(cases, streams, strict=True))
    for events, state in zip(streams, browser_fold(npm, cases), strict=True):
        assert state == server_fold(events)

"""One conversation to render: a tool step, a request that survives a crash, a failing run."""

from __future__ import annotations

from collections.abc import Iterator

from app.events import catalogue as c
from app.events.codec import new
from app.events.envelope import Event, NewEvent

THREAD = "01938f00-0000-7000-8000-000000000001"
START = 1_764_020_000 * 10**9

PARAMS = c.SamplingParams(seed=7)
ERROR = c.ErrorInfo(kind="ValueError", message="no such city\x1b[31m")


def first_run() -> Iterator[tuple[float, str, c.Payload]]:
    yield 0.0, "", c.ThreadCreated(owner="local")
    yield (
        0.0,
        "",
        c.MessagePosted(message="m1", role="user", content="What is the capital of France?"),
    )
    yield 0.0, "r1", c.RunStarted(run="r1", hook="on_message", node="n", message="m1")
    yield 0.01, "r1", c.StepStarted(step="s1", name="look_up", kind="tool", input={"city": "Paris"})
    yield 0.06, "r1", c.StepCompleted(step="s1", output="sunny")
    yield 0.07, "r1", c.RequestQueued(request="q1", params=PARAMS)
    yield 0.08, "r1", c.MessageStarted(message="m2", request="q1")
    yield 0.09, "r1", c.RequestClaimed(request="q1", epoch=1, worker="w")
    yield (
        0.10,
        "r1",
        c.RequestStarted(request="q1", epoch=1, model="smol", weights="ab", prompt_tokens=31),
    )
    yield (
        0.20,
        "r1",
        c.TokensGenerated(
            request="q1", epoch=1, batch=0, index=0, tokens=[1], text="Paris", offsets=[0.0]
        ),
    )
    yield (
        0.26,
        "r1",
        c.TokensGenerated(
            request="q1",
            epoch=1,
            batch=1,
            index=1,
            tokens=[2, 3],
            text=" is the",
            offsets=[25.0, 50.0],
        ),
    )
    yield 0.50, "r1", c.RequestAbandoned(request="q1", epoch=1, worker="w", reason="core died")
    yield 0.52, "r1", c.RequestClaimed(request="q1", epoch=2, worker="w")
    yield (
        0.60,
        "r1",
        c.RequestStarted(
            request="q1", epoch=2, model="smol", weights="ab", prompt_tokens=31, resumed_tokens=3
        ),
    )
    yield (
        0.80,
        "r1",
        c.TokensGenerated(
            request="q1", epoch=2, batch=2, index=3, tokens=[4], text=" capital.", offsets=[0.0]
        ),
    )
    yield (
        0.82,
        "r1",
        c.RequestFinished(
            request="q1",
            epoch=2,
            reason="stop",
            text="Paris is the capital.",
            usage=c.Usage(prompt_tokens=31, completion_tokens=4),
            timings=c.Timings(queue_ms=20, prefill_ms=100, decode_ms=600),
            batches=3,
            digest="",
        ),
    )
    yield 0.83, "r1", c.RunCompleted(run="r1")


def second_run() -> Iterator[tuple[float, str, c.Payload]]:
    yield 700.0, "", c.MessagePosted(message="m3", role="user", content="And of Atlantis?")
    yield 700.0, "r2", c.RunStarted(run="r2", hook="on_message", node="n", message="m3")
    yield 700.01, "r2", c.StepStarted(step="s2", name="look_up", kind="tool")
    yield 700.02, "r2", c.StepStarted(step="s3", name="ask the sea", parent="s2")
    yield 701.02, "r2", c.StepFailed(step="s3", error=ERROR)
    yield 701.03, "r2", c.StepFailed(step="s2", error=ERROR)
    yield 701.04, "r2", c.MessageStarted(message="m4")
    yield 701.05, "r2", c.MessageDelta(message="m4", text="I could ")
    yield 701.15, "r2", c.MessageDelta(message="m4", text="not find it.")
    yield 701.25, "r2", c.MessageCompleted(message="m4", content="I could not find it. Sorry.")
    yield 701.30, "r2", c.RunFailed(run="r2", error=ERROR)


def said() -> Iterator[tuple[float, str, c.Payload]]:
    yield from first_run()
    yield from second_run()


def new_events() -> list[NewEvent]:
    """The story as events to append; a request's events name it in the envelope."""
    found = []
    for _, run, payload in said():
        request = getattr(payload, "request", None)
        bound = isinstance(payload, c.MessageStarted)
        found.append(new(payload, run=run or None, request=None if bound else request))
    return found


def events() -> list[Event]:
    """The story as committed events with exact times."""
    found = []
    for version, ((after, run, _), event) in enumerate(zip(said(), new_events(), strict=True), 1):
        found.append(
            Event(
                seq=version + 10,
                stream=f"thread/{THREAD}",
                version=version,
                type=event.type,
                schema=event.schema,
                time=START + int(after * 1e9),
                actor="system",
                request=event.request,
                run=run or None,
                cause=None,
                data=event.data,
            )
        )
    return found

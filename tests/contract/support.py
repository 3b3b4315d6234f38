"""Helpers of the contract suite."""

from __future__ import annotations

from app.events.catalogue import (
    Payload,
    RequestAbandoned,
    RequestCancelled,
    RequestEmbedded,
    RequestFailed,
    RequestFinished,
    RequestPreempted,
    RequestQueued,
    RequestResumed,
    RequestStarted,
    SamplingParams,
    ThreadRenamed,
    Timings,
    TokensGenerated,
    Usage,
)
from app.events.codec import new
from app.events.envelope import NewEvent
from app.events.store import Append, Appended, EventStore, Fence


class Clock:
    """A clock the test moves, in nanoseconds."""

    def __init__(self) -> None:
        self.now = 1_700_000_000 * 10**9

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)


def note(text: str) -> NewEvent:
    """An event without meaning to the queue."""
    return new(ThreadRenamed(title=text))


def notes(stream: str, *texts: str, expected: int = -1, command: str | None = None) -> Append:
    return Append(
        stream=stream, events=[note(t) for t in texts], expected=expected, command=command
    )


def queued(
    request: str,
    *,
    priority: int = 0,
    model: str | None = None,
    run: str | None = None,
    tenant: str | None = None,
) -> NewEvent:
    payload = RequestQueued(
        request=request,
        params=SamplingParams(seed=1),
        text="x",
        priority=priority,
        model=model,
        tenant=tenant,
    )
    return new(payload, request=request, run=run)


def life(event_type: str, request: str, epoch: int = 1) -> NewEvent:
    """An event of a request's life."""
    payloads: dict[str, Payload] = {
        "request.started": RequestStarted(
            request=request, epoch=epoch, model="m", weights="w", prompt_tokens=1
        ),
        "tokens.generated": TokensGenerated(
            request=request, epoch=epoch, batch=0, index=0, tokens=[1], text="a"
        ),
        "request.embedded": RequestEmbedded(
            request=request, epoch=epoch, vector="AAAAPw==", dimensions=1, pooling="mean"
        ),
        "request.preempted": RequestPreempted(request=request, epoch=epoch, reason="blocks"),
        "request.resumed": RequestResumed(request=request, epoch=epoch),
        "request.finished": RequestFinished(
            request=request,
            epoch=epoch,
            reason="stop",
            text="a",
            usage=Usage(),
            timings=Timings(),
            batches=1,
            digest="",
        ),
        "request.failed": RequestFailed(request=request, code="error", message="no"),
        "request.cancelled": RequestCancelled(request=request),
        "request.abandoned": RequestAbandoned(
            request=request, epoch=epoch, worker="w", reason="drain"
        ),
    }
    return new(payloads[event_type], request=request)


async def must(store: EventStore, append: Append) -> Appended:
    """Append, which has to succeed."""
    outcome = await store.append(append)
    assert isinstance(outcome, Appended), outcome
    return outcome


async def enqueue(
    store: EventStore, request: str, stream: str = "thread/a", **options: object
) -> int:
    event = queued(request, **options)  # type: ignore[arg-type]
    return (await must(store, Append(stream=stream, events=[event]))).last_seq


async def write(
    store: EventStore, event_type: str, request: str, epoch: int | None, stream: str = "thread/a"
) -> object:
    """Append one event of a request's life, under a fence unless ``epoch`` is None."""
    fence = None if epoch is None else Fence(request, epoch)
    event = life(event_type, request, epoch or 0)
    return await store.append(Append(stream=stream, events=[event], fence=fence))


async def titles(store: EventStore, stream: str | None = None) -> list[bytes]:
    return [event.data async for event in store.read(stream=stream)]

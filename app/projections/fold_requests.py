"""The fold of a request's events into a `ThreadState`, and of its tokens into bound messages."""

from __future__ import annotations

from itertools import chain
from typing import Any

from app.events import catalogue as c
from app.events.envelope import Event
from app.events.lifecycle import advance
from app.projections.fold import HANDLERS, follow_end, on
from app.projections.model import MessageState, RequestState, ThreadState
from app.projections.reading import Burst

__all__ = ["HANDLERS"]


@on(c.RequestQueued)
def request_queued(state: ThreadState, event: Event, data: c.RequestQueued) -> None:
    if data.request in state.index.requests:
        return
    request = RequestState(
        id=data.request,
        run=event.run,
        model=data.model,
        params=data.params,
        tools=_names(data.tools or []),
        forced=data.metadata.get("forced") is True,
        embeds=data.embed is not None,
        version=event.version,
        queued=event.time,
    )
    state.requests.append(request)
    state.index.requests[request.id] = request


def _names(tools: list[dict[str, Any]]) -> list[str]:
    """Names of tools in OpenAI's form; what has none is left out."""
    functions = [tool.get("function") for tool in tools]
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    return [name for name in names if isinstance(name, str)]


def _advance(state: ThreadState, event: Event, request_id: str) -> RequestState | None:
    """Move a request on; None if it is unknown or the event is illegal in its state."""
    request = state.index.requests.get(request_id)
    after = advance(request.state, event.type) if request is not None else None
    if request is None or after is None:
        return None
    request.state = after
    return request


@on(c.RequestClaimed)
def request_claimed(state: ThreadState, event: Event, data: c.RequestClaimed) -> None:
    request = _advance(state, event, data.request)
    if request is not None:
        request.epoch, request.worker = data.epoch, data.worker
        request.claimed = request.claimed or event.time


@on(c.RequestStarted)
def request_started(state: ThreadState, event: Event, data: c.RequestStarted) -> None:
    request = _advance(state, event, data.request)
    if request is not None:
        request.model, request.prompt_tokens = data.model, data.prompt_tokens
        request.waited_for = data.waited_for
        request.started = request.started or event.time


@on(c.RequestPreempted)
def request_preempted(state: ThreadState, event: Event, data: c.RequestPreempted) -> None:
    request = _advance(state, event, data.request)
    if request is not None:
        request.preemptions.append(data.reason)


@on(c.RequestResumed)
def request_resumed(state: ThreadState, event: Event, data: c.RequestResumed) -> None:
    _advance(state, event, data.request)


@on(c.RequestEmbedded)
def request_embedded(state: ThreadState, event: Event, data: c.RequestEmbedded) -> None:
    request = _advance(state, event, data.request)
    if request is not None:
        request.dimensions = data.dimensions


@on(c.RequestAbandoned)
def request_abandoned(state: ThreadState, event: Event, data: c.RequestAbandoned) -> None:
    request = _advance(state, event, data.request)
    if request is not None:
        request.worker = None


@on(c.TokensGenerated)
def tokens_generated(state: ThreadState, event: Event, data: c.TokensGenerated) -> None:
    tokens_burst(state, event, Burst.of([event], [data]))


@on(Burst)
def tokens_burst(state: ThreadState, event: Event, burst: Burst) -> None:
    request = _advance(state, event, burst.request)
    new = burst.past(request.batches) if request is not None else None
    if request is None or new is None:
        return
    first, last = new.events[0].time, new.events[-1].time
    request.batches = new.batches[-1].batch + 1
    request.first_token = request.first_token or first
    request.tokens.extend(chain.from_iterable([data.tokens for data in new.batches]))
    followers = _followers(state, burst.request)
    # All references but the local one are dropped, so that CPython grows the string in place.
    text, request.text = request.text, ""
    for message in followers:
        message.content = ""
    text += "".join([data.text for data in new.batches])
    request.text = text
    for message in followers:
        message.content, message.updated = text, last
        message.first_token = message.first_token or first


def _followers(state: ThreadState, request: str) -> list[MessageState]:
    """Messages whose text is this request's, as long as nobody edited or ended them."""
    bound = state.index.bound.get(request, ())
    return [m for m in bound if m.status == "streaming" and not m.edited]


@on(c.RequestFinished, c.RequestFailed, c.RequestCancelled)
def request_ended(state: ThreadState, event: Event, data: Any) -> None:
    request = _advance(state, event, data.request)
    if request is None:
        return
    request.ended, request.usage = event.time, data.usage
    request.reason = getattr(data, "reason", None)
    request.timings = getattr(data, "timings", None)
    request.code, request.message = getattr(data, "code", None), getattr(data, "message", None)
    text = getattr(data, "text", None)
    if text is not None:
        request.text = text
    for message in _followers(state, request.id):
        message.content = request.text
    for message in state.index.bound.get(request.id, ()):
        if message.status == "streaming":
            follow_end(message, request, event)

"""The engine's requests behind one HTTP request: queued, followed to their ends, or cancelled."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext

import anyio
import msgspec

from app.chat.admission import Admission
from app.errors import cause
from app.events.catalogue import (
    Payload,
    RequestCancelled,
    RequestFailed,
    RequestFinished,
    RequestQueued,
    TokensGenerated,
)
from app.events.codec import Unknown, decode, new
from app.events.envelope import Event, NewEvent, request_stream
from app.events.follow import following
from app.events.ids import uuid7
from app.events.store import ANY, Append, Appended, Conflict, EventStore, StoreError
from app.transport.openai.errors import ApiError, failed

__all__ = ["CANCELLED", "FOLLOWED", "Call", "Feed", "Place", "failure", "locked"]

log = logging.getLogger(__name__)

Feed = Callable[[int, Payload], Awaitable[None]]
"""Takes the number of a request and what happened to it."""

FOLLOWED = (
    *("request.started", "tokens.generated", "request.embedded"),
    *("request.finished", "request.failed", "request.cancelled"),
)
CANCELLED = "the request was cancelled"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request stands that has no stream of its own: in a conversation.

    Attributes:
        stream: The conversation's.
        version: The request is behind this version of it; there it must be to be appended.
        before: Events that are appended with the request, before it.

    """

    stream: str
    version: int
    before: list[NewEvent] = []


class Call:
    """Requests that are answered together, by default in streams of their own.

    Attributes:
        queued: The requests, in order of their choices.
        queued_before: Whether they were in the log already.

    Args:
        store: The log.
        queued: At least one.
        actor: Who asks, as events name it.
        admission: Says whether there is room for them; None: it is not asked.
        detached: They go on when nobody waits for them any more.
        queued_before: They are in the log already.
        place: Where the request is if not in a stream of its own.

    """

    def __init__(
        self,
        store: EventStore,
        queued: Sequence[RequestQueued],
        *,
        actor: str,
        admission: Admission | None = None,
        detached: bool = False,
        queued_before: bool = False,
        place: Place | None = None,
    ) -> None:
        self.queued = list(queued)
        self._store = store
        self._actor = actor
        self._admission = admission
        self._detached = detached
        self._place = place
        self.queued_before = queued_before
        self._texts = [""] * len(self.queued)
        # queued and not ended
        self._open = set(range(len(self.queued))) if queued_before else set[int]()

    @property
    def ended(self) -> bool:
        """Whether all of them have ended, or may go on alone."""
        return self._detached or not self._open

    def stream(self, index: int) -> str:
        """Where the events of a request are."""
        place = self._place
        return place.stream if place else request_stream(self.queued[index].request)

    async def queue(self) -> None:
        """Put all of them into the queue.

        Raises:
            ApiError: 409: something else was written to the conversation.
            Full: Too many requests wait already.
            StoreError: The log did not take them.

        """
        if not self.queued_before:
            async with self._room(len(self.queued)):
                await self._put(range(len(self.queued)))

    def _room(self, count: int) -> AbstractAsyncContextManager[None]:
        """Raises `Full` if there is none for so many."""
        if self._admission is None:
            return nullcontext()
        return self._admission.room(self._actor, count)

    async def _put(self, indices: Collection[int]) -> None:
        """Put some of them into the queue. Errors as `queue`, but for the room."""
        self._open.update(indices)
        place = self._place
        appends = [
            Append(
                stream=self.stream(index),
                events=[
                    *(place.before if place else ()),
                    new(self.queued[index], actor=self._actor, request=self.queued[index].request),
                ],
                expected=place.version if place else ANY,
                command=uuid7(),
            )
            for index in indices
        ]
        for outcome in await self._store.append_many(appends):
            if isinstance(outcome, Conflict):
                raise locked()
            if not isinstance(outcome, Appended):
                raise StoreError(f"the log refused the request: {outcome}")

    async def follow(self, feed: Feed) -> None:
        """Tell ``feed`` what happens, until all of them have ended.

        Raises:
            ApiError: One of them failed, or was cancelled by somebody.

        """
        if len(self.queued) == 1:
            return await self._follow(0, feed)
        try:
            async with anyio.create_task_group() as group:
                for index in range(len(self.queued)):
                    group.start_soon(self._follow, index, feed)
        except BaseExceptionGroup as errors:
            raise cause(errors) from None
        return None

    async def cancel(self) -> None:
        """Cancel what has not ended, and record it; also while the caller is being cancelled."""
        with anyio.CancelScope(shield=True):
            appends = [self._cancelling(index) for index in sorted(self._open)]
            try:
                await self._store.append_many(appends)
            except StoreError as error:
                requests = ", ".join(str(append.events[0].request) for append in appends)
                log.warning("requests go on, nobody waits for them: %s (%s)", requests, error)
            self._open.clear()

    def _cancelling(self, index: int) -> Append:
        request = self.queued[index].request
        payload = RequestCancelled(request=request, text=self._texts[index])
        event = new(payload, actor=self._actor, request=request)
        return Append(stream=self.stream(index), events=[event])

    async def _follow(self, index: int, feed: Feed) -> None:
        after = self._place.version if self._place else 0
        async with aclosing(
            following(self._store, after=after, stream=self.stream(index), types=FOLLOWED)  # type: ignore[type-var]
        ) as batches:
            async for events in batches:
                for event in events:
                    if await self.told(event, feed, index):
                        return

    async def told(self, event: Event, feed: Feed, index: int = 0) -> bool:
        """Pass on what happened; returns whether it was the end.

        Raises:
            ApiError: It was a bad end.

        """
        payload = decode(event)
        if isinstance(payload, Unknown) or event.request != self.queued[index].request:
            return False
        match payload:
            case TokensGenerated(text=text):
                self._texts[index] += text
            case RequestFailed() | RequestCancelled() | RequestFinished():
                self._open.discard(index)
        error = failure(payload)
        if error is not None:
            raise error
        await feed(index, payload)
        return isinstance(payload, RequestFinished)


def failure(payload: Payload) -> ApiError | None:
    """The bad end of a request as an error; None: it is none."""
    match payload:
        case RequestFailed():
            return failed(payload)
        case RequestCancelled():
            return ApiError(499, CANCELLED, code="cancelled")
        case _:
            return None


def locked() -> ApiError:
    """What is written to a conversation, while something else is, has to wait."""
    message = "something else is being written to this conversation"
    return ApiError(409, message, code="conversation_locked", retry=1)

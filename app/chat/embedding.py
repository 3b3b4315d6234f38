"""``llm.embed``: vectors of texts, as a chat author asks for them."""

from __future__ import annotations

import contextlib
from base64 import b64decode
from collections import deque
from collections.abc import Sequence

import numpy as np

from app.chat.context import Context
from app.chat.errors import LLMError
from app.errors import EverlogError, InputError
from app.events.catalogue import (
    Embedding,
    RequestCancelled,
    RequestEmbedded,
    RequestFailed,
    RequestFinished,
    RequestQueued,
    SamplingParams,
)
from app.events.codec import decode, new
from app.events.envelope import Event, NewEvent, actor_of, request_stream
from app.events.follow import following
from app.events.ids import uuid7
from app.events.store import Append, Appended, StoreError

__all__ = ["Embeddings", "inputs"]

WINDOW = 128
"""Most texts of one call in the queue: what others ask waits behind these, not behind all."""

_ENDS = ("request.embedded", "request.finished", "request.failed", "request.cancelled")


def inputs(texts: str | Sequence[str]) -> list[str]:
    """The texts of a call.

    Raises:
        InputError: There is none, or one is no text or empty.

    """
    found = [texts] if isinstance(texts, str) else list(texts)
    if not found:
        raise InputError("must have at least one text", field="texts")
    for index, text in enumerate(found):
        if not isinstance(text, str) or not text:
            raise InputError("must be a text that is not empty", field=f"texts[{index}]")
    return found


class Embeddings:
    """One call: a request for each text, all in the stream of the first.

    Not in the thread's: vectors are long, and no part of the conversation.
    """

    def __init__(
        self,
        ctx: Context,
        texts: Sequence[str],
        how: Embedding,
        *,
        model: str | None,
        priority: int,
        deadline: int | None,
    ) -> None:
        self._ctx = ctx
        self._requests = [
            RequestQueued(
                request=uuid7(),
                params=SamplingParams(seed=0),
                model=model,
                text=text,
                priority=priority,
                deadline=deadline,
                metadata={"thread": ctx.thread, "run": ctx.run, "input": index},
                embed=how,
                tenant=actor_of(ctx.user),
            )
            for index, text in enumerate(texts)
        ]
        self._index = {queued.request: n for n, queued in enumerate(self._requests)}
        self._stream = request_stream(self._requests[0].request)
        self._waiting = deque(self._requests)
        self._open: set[str] = set()
        self._vectors: list[list[float]] = [[] for _ in texts]

    async def vectors(self) -> list[list[float]]:
        """Queue them, and wait until all have ended.

        Raises:
            LLMError: The engine could not read one of them.

        """
        try:
            await self._more()
            batches = following(self._ctx.store, stream=self._stream, types=_ENDS)
            async with contextlib.aclosing(batches):  # type: ignore[type-var]
                async for events in batches:
                    for event in events:
                        self._apply(event)
                    if not self._open and not self._waiting:
                        break
                    await self._more()
            return self._vectors
        finally:
            with contextlib.suppress(EverlogError):
                await self._append([self._cancelled(request) for request in self._open])

    # ------------------------------------------------------------------------- internal

    async def _more(self) -> None:
        room = min(WINDOW - len(self._open), len(self._waiting))
        if room < min(WINDOW // 4, len(self._waiting)):
            return
        self._ctx.emitter.check()
        taken = [self._waiting.popleft() for _ in range(room)]
        self._open.update(queued.request for queued in taken)
        actor = actor_of(self._ctx.user)
        await self._append([new(queued, actor=actor, request=queued.request) for queued in taken])

    async def _append(self, events: Sequence[NewEvent]) -> None:
        # One by one: each may have been ended by the engine meanwhile.
        appends = [Append(stream=self._stream, events=[event]) for event in events]
        for outcome in await self._ctx.store.append_many(appends) if appends else ():
            if not isinstance(outcome, Appended):
                raise StoreError(f"the log refused the request: {outcome}")

    def _cancelled(self, request: str) -> NewEvent:
        return new(RequestCancelled(request=request), request=request)

    def _apply(self, event: Event) -> None:
        index = self._index[event.request or ""]  # nothing else is in the stream
        match decode(event):
            case RequestEmbedded(vector=vector):
                self._vectors[index] = np.frombuffer(b64decode(vector), "<f4").tolist()
            case RequestFinished(request=request):
                self._open.discard(request)
            case RequestFailed(request=request, code=code, message=message):
                self._open.discard(request)
                raise LLMError(code, f"texts[{index}]: {message.removeprefix('text: ')}")
            case RequestCancelled(request=request):
                self._open.discard(request)
                raise LLMError("cancelled", f"texts[{index}]: somebody cancelled it")
            case _:
                pass

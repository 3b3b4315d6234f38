"""``llm``: the engine, as a chat author calls it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import msgspec

from app.chat.context import Context, current
from app.chat.embedding import Embeddings, inputs
from app.chat.errors import LLMError
from app.chat.sampling import Sampling, sampling_params
from app.errors import InputError
from app.events.catalogue import (
    ChatMessage,
    Embedding,
    ErrorInfo,
    Payload,
    RequestCancelled,
    RequestFailed,
    RequestFinished,
    RequestQueued,
    StepCompleted,
    StepFailed,
    StepStarted,
    Timings,
    TokensGenerated,
    Usage,
)
from app.events.codec import decode, new
from app.events.envelope import Event, actor_of, thread_stream
from app.events.ids import uuid7
from app.events.store import Append

if TYPE_CHECKING:
    from app.chat.message import Message

__all__ = ["LLM", "Generation", "cancel", "llm", "turns"]

_CANCELLED = "cancelled"


class Generation:
    """One call of the engine: iterate for pieces of text, or await for all of it.

    It is queued by the first use, or by ``Message.stream_from``; a generation nobody uses costs
    nothing. Its events stand in the thread; several may read it, each from the beginning.

    Attributes:
        request: Id of the engine request.
        pieces: Text so far.
        usage: Token counts, once it has ended.
        timings: Where the time went, once it has ended.
        finish_reason: ``stop``, ``length``, ``cancelled`` or ``failed``; None while it runs.

    """

    def __init__(self, queued: RequestQueued, *, timeout: float | None = None) -> None:
        self.request = queued.request
        self.pieces: list[str] = []
        self.usage: Usage | None = None
        self.timings: Timings | None = None
        self.finish_reason: str | None = None
        self._queued = queued
        self._timeout = timeout
        self._error: LLMError | None = None
        self._version: int | None = None
        self._lock = asyncio.Lock()
        self._step: str | None = None
        self._ctx = current()
        if self._ctx.step is not None:
            self._ctx.step.offer(self.request)

    @property
    def started(self) -> bool:
        """Whether it has been queued."""
        return self._version is not None

    async def text(self) -> str:
        """Wait for the end and return the whole text.

        Raises:
            LLMError: The engine could not answer.

        """
        async for _ in self:
            pass
        return "".join(self.pieces)

    def __await__(self) -> Generator[Any, None, str]:
        return self.text().__await__()

    async def __aiter__(self) -> AsyncIterator[str]:
        if not self.started:
            await self.start(lambda queued: [*self._in_step(), queued])
        at = 0
        while True:
            while at < len(self.pieces):
                at += 1
                yield self.pieces[at - 1]
            if self.finish_reason is not None:
                break
            async with self._lock:
                if at == len(self.pieces) and self.finish_reason is None:
                    await self._more()
        if self._error is not None:
            raise self._error

    async def start(self, events: Callable[[RequestQueued], list[Payload]]) -> None:
        """Queue the request, in one append with what ``events`` puts around it."""
        async with self._lock:
            if self.started:
                return
            self._ctx.generations.append(self)
            queued = msgspec.structs.replace(self._queued, tenant=actor_of(self._ctx.user))
            if self._timeout is not None:
                queued = msgspec.structs.replace(queued, deadline=_deadline(self._timeout))
            self._version = await self._ctx.commit(*events(queued))

    async def cancel(self) -> None:
        """Stop generating. What has been generated stays."""
        if self.started and self.finish_reason is None:
            await cancel(self._ctx, self.request, "".join(self.pieces))

    # ------------------------------------------------------------------------- internal

    def _in_step(self) -> list[Payload]:
        """A step of its own, if the author's step was written before it knew of the request."""
        step = self._ctx.step
        if step is None or step.request == self.request:
            return []
        self._step = uuid7()
        return [
            StepStarted(
                step=self._step, name="llm", kind="llm", parent=step.id, request=self.request
            )
        ]

    async def _more(self) -> None:
        store, stream = self._ctx.store, thread_stream(self._ctx.thread)
        assert self._version is not None
        await store.wait(after=self._version, stream=stream)
        for event in await store.fetch(after=self._version, stream=stream):
            self._version = event.version
            if event.request == self.request:
                self._apply(event)

    def _apply(self, event: Event) -> None:
        payload = decode(event)
        match payload:
            case TokensGenerated(text=text):
                if text:
                    self.pieces.append(text)
            case RequestFinished():
                self.usage, self.timings = payload.usage, payload.timings
                self._end(payload.reason)
            case RequestCancelled():
                self.usage = payload.usage
                self._end(_CANCELLED)
            case RequestFailed():
                self.usage = payload.usage
                self._error = LLMError(payload.code, payload.message)
                self._end("failed")
            case _:
                pass

    def _end(self, reason: str) -> None:
        self.finish_reason = reason
        if self._step is None or self._ctx.emitter.error is not None:
            return
        if self._error is None:
            self._ctx.emit(StepCompleted(step=self._step))
        else:
            error = ErrorInfo(kind=self._error.code, message=self._error.message)
            self._ctx.emit(StepFailed(step=self._step, error=error))


class LLM:
    """The engine's model. Every call is a request in the log, with all that made its answer."""

    def chat(
        self,
        messages: str | Sequence[dict[str, Any] | dict[str, str] | ChatMessage | Message],
        *,
        model: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """Answer a conversation, rendered by the model's own chat template.

        Args:
            messages: Turns as ``{"role": ..., "content": ...}`` or `Message`, or one user's text.
            model: Only a worker with this model; None takes any.
            priority: A larger one runs earlier.
            timeout: Seconds from queueing until it fails with code ``timeout``.
            sampling: `Sampling`.

        Raises:
            InputError: An argument is unknown, of the wrong type or out of range; ``field`` names
                it.

        """
        queued = RequestQueued(
            request=uuid7(),
            params=sampling_params(current().chat, sampling),
            messages=turns(messages),
            model=model,
            priority=priority,
        )
        return Generation(queued, timeout=_timeout(timeout))

    def complete(
        self,
        prompt: str,
        *,
        model: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """Continue a raw text, without a chat template. Arguments as for `chat`."""
        if not isinstance(prompt, str) or not prompt:
            raise InputError("must be a text that is not empty", field="prompt")
        queued = RequestQueued(
            request=uuid7(),
            params=sampling_params(current().chat, sampling),
            text=prompt,
            model=model,
            priority=priority,
        )
        return Generation(queued, timeout=_timeout(timeout))

    async def embed(
        self,
        texts: str | Sequence[str],
        *,
        dimensions: int | None = None,
        model: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> list[list[float]]:
        """Make vectors of texts: pooled hidden states, of length 1.

        Args:
            texts: One, or several. None is cut.
            dimensions: Cut the vectors to this length, and scale them to length 1 again.
            model: Only a worker with this model; None takes any.
            priority: A larger one runs earlier.
            timeout: Seconds from the call until it fails with code ``timeout``.

        Returns:
            A vector for each text, in their order.

        Raises:
            InputError: An argument is wrong; ``field`` names it.
            LLMError: The engine could not read a text.

        """
        if dimensions is not None and dimensions < 1:
            raise InputError(f"must be at least 1, not {dimensions}", field="dimensions")
        call = Embeddings(
            current(),
            inputs(texts),
            Embedding(dimensions=dimensions),
            model=model,
            priority=priority,
            deadline=_deadline(_timeout(timeout)),
        )
        return await call.vectors()


llm = LLM()


async def cancel(ctx: Context, request: str, text: str | None) -> None:
    """Cancel a request; nothing happens if it has ended."""
    event = new(RequestCancelled(request=request, text=text), request=request, run=ctx.run)
    await ctx.store.append(Append(stream=thread_stream(ctx.thread), events=[event]))


def turns(messages: str | Sequence[dict[str, Any] | ChatMessage | Message]) -> list[ChatMessage]:
    """Return a prompt's turns as the log keeps them.

    Raises:
        InputError: There is none, or one has no role or no text; ``field`` names it.

    """
    if isinstance(messages, str):
        messages = [ChatMessage(role="user", content=messages)]
    found = [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if not found:
        raise InputError("must have at least one message", field="messages")
    return found


def _turn(message: Any, field: str) -> ChatMessage:
    if isinstance(message, ChatMessage):
        return message
    if isinstance(message, dict):
        role, content, name = (message.get(key) for key in ("role", "content", "name"))
    else:
        role, content = (getattr(message, key, None) for key in ("role", "content"))
        name = None
    for key, value in (("role", role), ("content", content)):
        if not isinstance(value, str):
            raise InputError(f"must be a str, not {type(value).__name__}", field=f"{field}.{key}")
    return ChatMessage(role=role, content=content, name=name)  # type: ignore[arg-type]


def _timeout(seconds: float | None) -> float | None:
    if seconds is not None and not seconds > 0:
        raise InputError(f"must be above 0 seconds, not {seconds}", field="timeout")
    return seconds


def _deadline(seconds: float | None) -> int | None:
    return None if seconds is None else time.time_ns() + int(seconds * 1e9)

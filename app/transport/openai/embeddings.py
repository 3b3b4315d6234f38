"""``/v1/embeddings``: vectors of texts or token ids. Pure, but for following the log."""

from __future__ import annotations

from base64 import b64decode
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from app.events.catalogue import (
    Embedding,
    Payload,
    RequestEmbedded,
    RequestFinished,
    RequestQueued,
    SamplingParams,
)
from app.events.envelope import request_stream
from app.events.follow import following
from app.events.ids import uuid7
from app.transport.openai.call import FOLLOWED, Call, Feed
from app.transport.openai.errors import ApiError, refusal

__all__ = ["MAX_INPUTS", "EmbeddingAnswer", "EmbeddingBody", "EmbeddingCall", "plan"]

MAX_INPUTS = 2048
"""Most inputs of one HTTP request; OpenAI's."""
WINDOW = 128
"""Most inputs of one HTTP request in the queue: others wait behind these, not behind all."""

#: What an input is called on its way through the engine.
_OWN = ("text", "prompt")

Input = str | list[int]


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """The body of a request."""

    input: Any
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    priority: Annotated[int, Meta(gt=-(2**31), lt=2**31)] = 0
    cache_salt: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, Any] = {}


def plan(
    body: EmbeddingBody, *, deadline: int | None, origin: dict[str, Any]
) -> list[RequestQueued]:
    """Translate a request: one of the engine's for every input, in order.

    Raises:
        ApiError: 400: a field is not as it should be.

    """
    found: list[RequestQueued] = []
    for number, each in enumerate(_inputs(body.input)):
        more = {"input": number, "of": found[0].request} if found else {}
        queued = RequestQueued(
            request=uuid7(),
            params=SamplingParams(seed=0),
            model=body.model,
            text=each if isinstance(each, str) else None,
            prompt=None if isinstance(each, str) else each,
            priority=-body.priority,
            deadline=deadline,
            salt=body.cache_salt,
            metadata={"endpoint": "embeddings", **origin, **more},
            embed=Embedding(dimensions=body.dimensions),
        )
        found.append(queued)
    return found


def _inputs(given: Any) -> list[Input]:
    if isinstance(given, str) or (isinstance(given, list) and given and _is_id(given[0])):
        return [_input(given, "input")]
    if not isinstance(given, list):
        raise refusal("input", "input must be text, token ids, or an array of one of these")
    if not given:
        raise refusal("input", "input must not be empty")
    if len(given) > MAX_INPUTS:
        raise refusal("input", f"input has {len(given)} parts; at most {MAX_INPUTS} can be given")
    return [_input(each, f"input[{number}]") for number, each in enumerate(given)]


def _input(given: Any, at: str) -> Input:
    if not isinstance(given, str | list):
        raise refusal(at, f"{at} must be text or token ids")
    if not given:
        raise refusal(at, f"{at} must not be empty")
    if isinstance(given, list) and not all(map(_is_id, given)):
        wrong = next(number for number, each in enumerate(given) if not _is_id(each))
        raise refusal(f"{at}[{wrong}]", f"{at}[{wrong}] must be a token id")
    return given


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


class EmbeddingCall(Call):
    """Requests that are read together, all in the stream of the first.

    So one place in the log is followed for all of them, however many there are. They are queued as
    others end, so that they fill batches and yet nobody has to wait for all of them.
    """

    _begun = 0  # so many have been put into the queue

    @property
    def ended(self) -> bool:
        """Whether all of them have ended."""
        return super().ended and self._begun == len(self.queued)

    async def queue(self) -> None:
        """Put the first of them into the queue.

        Raises:
            Full: Too many requests wait already.
            StoreError: The log did not take them.

        """
        async with self._room(min(WINDOW, len(self.queued))):
            await self._more()

    async def _more(self) -> None:
        room = WINDOW - len(self._open)
        if self._begun == len(self.queued) or room < WINDOW // 4:
            return
        new = range(self._begun, min(self._begun + room, len(self.queued)))
        self._begun = new.stop
        await self._put(new)

    def stream(self, index: int) -> str:
        """That of the first."""
        return request_stream(self.queued[0].request)

    async def follow(self, feed: Feed) -> None:
        """Tell ``feed`` what happens, until all of them have ended.

        Raises:
            ApiError: One of them failed, or was cancelled by somebody; it says which.

        """
        numbers = {queued.request: number for number, queued in enumerate(self.queued)}
        async with aclosing(
            following(self._store, stream=self.stream(0), types=FOLLOWED)  # type: ignore[type-var]
        ) as batches:
            async for events in batches:
                for event in events:
                    number = numbers[event.request or ""]  # nothing else is in the stream
                    try:
                        await self.told(event, feed, number)
                    except ApiError as error:
                        raise self._named(error, number) from None
                if self.ended:
                    return
                await self._more()

    def _named(self, error: ApiError, number: int) -> ApiError:
        """The same error with the name that its input has."""
        if error.param not in _OWN and error.code != "context_length_exceeded":
            return error
        at = "input" if len(self.queued) == 1 else f"input[{number}]"
        message = error.message.removeprefix(f"{error.param}: ")
        return ApiError(error.status, f"{at}: {message}", param=at, code=error.code)


class EmbeddingAnswer:
    """Vectors out of the events of their requests. There are no streams of them.

    Args:
        requests: What was asked of the engine.
        model: Name that clients see.
        encoding: ``float`` or ``base64``.

    """

    def __init__(self, requests: list[RequestQueued], *, model: str, encoding: str) -> None:
        self._model, self._encoding = model, encoding
        self._vectors = [""] * len(requests)
        self._tokens = 0

    def opening(self) -> bytes:
        """Nothing."""
        return b""

    def feed(self, index: int, payload: Payload) -> bytes:
        """Take in what happened to a request."""
        match payload:
            case RequestEmbedded(vector=vector):
                self._vectors[index] = vector
            case RequestFinished(usage=usage):
                self._tokens += usage.prompt_tokens
        return b""

    def closing(self) -> bytes:
        """Nothing."""
        return b""

    def broken(self, error: ApiError) -> bytes:
        """Nothing: the response says it."""
        return b""

    def body(self) -> dict[str, Any]:
        """All vectors, in order."""
        data = [
            {"object": "embedding", "index": index, "embedding": self._spelled(vector)}
            for index, vector in enumerate(self._vectors)
        ]
        usage = {"prompt_tokens": self._tokens, "total_tokens": self._tokens}
        return {"object": "list", "data": data, "model": self._model, "usage": usage}

    def _spelled(self, vector: str) -> str | list[float]:
        if self._encoding == "base64":
            return vector
        values = np.frombuffer(b64decode(vector), "<f4").tolist()
        return [float(f"{value:.9g}") for value in values]  # nine digits tell all floats apart

"""``/v1/completions``: raw prompts, as text or token ids, continued. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from app.events.catalogue import Payload, RequestFinished, RequestQueued, TokensGenerated
from app.events.ids import public_id, uuid7
from app.transport.openai import logprobs, sse
from app.transport.openai.chat import FINGERPRINT, choices
from app.transport.openai.errors import ApiError, refusal
from app.transport.openai.params import MAX_CHOICES, Sampling, StreamOptions, sampling
from app.transport.openai.structured import structured
from app.transport.openai.tools import Tools
from app.transport.openai.usage import Counter

__all__ = ["CompletionAnswer", "CompletionBody", "plan"]

DEFAULT_TOKENS = 16
"""Length of an answer for which none is asked; OpenAI's."""
MAX_LOGPROBS = 5

Prompt = str | list[int]


class CompletionBody(Sampling, kw_only=True):
    """The body of a request."""

    prompt: Any
    echo: bool = False
    logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    stream_options: StreamOptions = StreamOptions()
    return_token_ids: bool = False


def plan(
    body: CompletionBody, *, deadline: int | None, origin: dict[str, Any]
) -> list[RequestQueued]:
    """Translate a request: ``n`` of the engine's for every prompt, in order.

    Raises:
        ApiError: 400: a field is not as it should be.

    """
    prompts = _prompts(body.prompt)
    if len(prompts) * body.n > MAX_CHOICES:
        raise refusal("prompt", f"at most {MAX_CHOICES} answers can be had at once")
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_LOGPROBS:
        raise refusal("logprobs", f"logprobs must be between 0 and {MAX_LOGPROBS}")
    if body.echo and (body.logprobs is not None or not isinstance(prompts[0], str)):
        raise refusal("echo", "echo can only be had for text, and without logprobs")
    params = sampling(
        body,
        max_tokens=DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens,
        logprobs=body.logprobs,
        structured=structured(body.response_format, body.structured_outputs, Tools()),
    )
    found: list[RequestQueued] = []
    for number, prompt in enumerate(prompts):
        first = RequestQueued(
            request=uuid7(),
            params=params,
            model=body.model,
            text=prompt if isinstance(prompt, str) else None,
            prompt=None if isinstance(prompt, str) else prompt,
            priority=-body.priority,
            deadline=deadline,
            salt=body.cache_salt,
            metadata={"endpoint": "completions", **origin},
        )
        if found:
            more = {"choice": number * body.n, "of": found[0].request}
            first = msgspec.structs.replace(first, metadata={**first.metadata, **more})
        found += choices(first, body.n)
    return found


def _prompts(given: Any) -> list[Prompt]:
    one = isinstance(given, str) or (isinstance(given, list) and given and _is_id(given[0]))
    found = [given] if one else given
    if not isinstance(found, list) or not all(
        isinstance(p, str) or (isinstance(p, list) and all(map(_is_id, p))) for p in found
    ):
        raise refusal("prompt", "prompt must be text, token ids, or an array of one of these")
    if not found or not all(found):
        raise refusal("prompt", "prompt must not be empty")
    return found


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


class CompletionAnswer:
    """Chunks and the whole completion out of the events of its requests.

    Args:
        requests: What was asked of the engine.
        body: As it was sent.
        model: Name that clients see.
        created: Seconds since the epoch.
        spell: For log probabilities; None leaves them out.
        prompts: Token ids of the prompts, for theirs; of each request.

    """

    def __init__(
        self,
        requests: list[RequestQueued],
        body: CompletionBody,
        *,
        model: str,
        created: int,
        spell: logprobs.Spell | None = None,
        prompts: Sequence[Sequence[int]] = (),
    ) -> None:
        self._head = {
            "id": public_id("cmpl-", requests[0].request),
            "object": "text_completion",
            "created": created,
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._requests = requests
        self._echo = body.echo
        self._options = body.stream_options
        self._texts = [self._prompt(request) for request in requests]
        self._reasons: list[str | None] = [None] * len(requests)
        self._lists = [logprobs.Legacy(spell) if spell else None for _ in requests]
        self._scores: list[dict[str, list[Any]]] = [{} for _ in requests]
        self._ids: list[list[int]] | None = (
            [[] for _ in requests] if body.return_token_ids else None
        )
        self._begun: set[int] = set()  # choices of which there is a chunk
        self._spell = spell
        self._prompts = prompts
        self._before: dict[int, list[Any]] = {}
        self._usage = Counter(len(requests), body.n)

    def opening(self) -> bytes:
        """The prompts, if they were asked for."""
        if not self._echo:
            return b""
        return b"".join(
            self._chunk(i, text) for i, text in enumerate(map(self._prompt, self._requests))
        )

    def feed(self, index: int, payload: Payload) -> bytes:
        """A chunk that says what happened to a request."""
        self._usage.feed(index, payload)
        match payload:
            case TokensGenerated(text=text):
                self._texts[index] += text
                scores = self._scored(index, payload)
                if payload.prompt_logprobs and self._spell is not None:
                    self._before[index] = logprobs.prompt(
                        payload.prompt_logprobs, self._prompts[index], self._spell
                    )
                ids = self._taken(index, payload)
                if not (text or scores or ids):
                    return b""
                return self._chunk(index, text, scores=scores, **ids)
            case RequestFinished(reason=reason):
                self._reasons[index] = reason
                return self._chunk(index, "", reason)
            case _:
                return b""

    def closing(self) -> bytes:
        """The usage if it was asked for, and the end."""
        if not self._options.include_usage:
            return sse.DONE
        return sse.data({**self._head, "choices": [], "usage": self._usage.chat()}) + sse.DONE

    def broken(self, error: ApiError) -> bytes:
        """The error, and nothing behind it."""
        return sse.data(error.body())

    def body(self) -> dict[str, Any]:
        """The whole completion."""
        whole = [
            {
                "index": index,
                "text": text,
                "logprobs": self._scores[index] or None,
                "finish_reason": self._reasons[index],
                **({"prompt_logprobs": self._before[index]} if index in self._before else {}),
                **self._prompt_ids(index),
                **({"token_ids": self._ids[index]} if self._ids is not None else {}),
            }
            for index, text in enumerate(self._texts)
        ]
        return {**self._head, "choices": whole, "usage": self._usage.chat()}

    def _prompt(self, request: RequestQueued) -> str:
        return (request.text or "") if self._echo else ""

    def _prompt_ids(self, index: int) -> dict[str, Any]:
        return {} if self._ids is None else {"prompt_token_ids": self._prompts[index]}

    def _taken(self, index: int, payload: TokensGenerated) -> dict[str, Any]:
        """Ids of tokens, if they were asked for."""
        if self._ids is None or not payload.tokens:
            return {}
        self._ids[index] += payload.tokens
        return {"token_ids": payload.tokens}

    def _scored(self, index: int, payload: TokensGenerated) -> dict[str, Any] | None:
        lists, found = self._lists[index], payload.logprobs
        if lists is None or not found:
            return None
        new = lists.add(payload.tokens, found)
        for name, values in new.items():
            self._scores[index].setdefault(name, []).extend(values)
        return new

    def _chunk(
        self,
        index: int,
        text: str,
        reason: str | None = None,
        *,
        scores: dict[str, Any] | None = None,
        **more: Any,
    ) -> bytes:
        choice = {"index": index, "text": text, "logprobs": scores, "finish_reason": reason, **more}
        if index not in self._begun:
            self._begun.add(index)
            choice |= self._prompt_ids(index)
        chunk = {**self._head, "choices": [choice]}
        if self._options.continuous_usage_stats:
            chunk["usage"] = self._usage.chat()
        elif self._options.include_usage:
            chunk["usage"] = None
        return sse.data(chunk)

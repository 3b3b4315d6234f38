"""``/v1/chat/completions``: requests in, completions and chunks out. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from app import __version__
from app.events.catalogue import (
    Payload,
    RequestFinished,
    RequestQueued,
    SamplingParams,
    TokensGenerated,
)
from app.events.ids import public_id, uuid7
from app.transport.openai import calls, logprobs, sse
from app.transport.openai.errors import ApiError, refusal, renamed
from app.transport.openai.params import (
    Sampling,
    StreamOptions,
    sampling,
    seeded,
    template_variables,
)
from app.transport.openai.prompts import messages
from app.transport.openai.structured import structured
from app.transport.openai.tools import Choice, Tools, tools
from app.transport.openai.usage import Counter

__all__ = ["FINGERPRINT", "ChatAnswer", "ChatBody", "Plan", "plan"]

FINGERPRINT = f"everlog-{__version__}"
MAX_TOP = 20
"""Most alternatives to a token that can be asked for."""
NOTHING: Mapping[str, Any] = {}


class ChatBody(Sampling, kw_only=True):
    """The body of a request."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | Choice | None = None
    parallel_tool_calls: bool = True
    stream_options: StreamOptions = StreamOptions()
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    modalities: list[str] | None = None
    return_token_ids: bool = False


class Plan(msgspec.Struct, frozen=True):
    """What a request asks of the engine; ``ids``: the answer has token ids beside its texts."""

    requests: list[RequestQueued]
    tools: Tools = Tools()
    ids: bool = False


def plan(body: ChatBody, *, deadline: int | None, origin: dict[str, Any]) -> Plan:
    """Translate a request. ``origin`` says in the log how it came.

    Raises:
        ApiError: 400: a field is not as it should be.

    """
    if body.modalities not in (None, ["text"]):
        raise refusal("modalities", 'modalities must be ["text"]: the model writes text only')
    offered = tools(body.tools, body.tool_choice, parallel=body.parallel_tool_calls)
    variables = template_variables(body.chat_template_kwargs or {})
    if not body.add_generation_prompt:
        variables["add_generation_prompt"] = False
    first = RequestQueued(
        request=uuid7(),
        params=_params(body, offered),
        model=body.model,
        messages=messages(body.messages),
        # the less, the earlier: so it is where clients have this field from
        priority=-body.priority,
        deadline=deadline,
        salt=body.cache_salt,
        tools=offered.offered or None,
        template=variables,
        metadata={"endpoint": "chat.completions", **origin},
    )
    return Plan(choices(first, body.n), offered, body.return_token_ids)


def choices(first: RequestQueued, count: int) -> list[RequestQueued]:
    """The same request so many times, each with a seed of its own."""
    more = [
        msgspec.structs.replace(
            first,
            request=uuid7(),
            params=seeded(first.params, index),
            metadata={**first.metadata, "choice": index, "of": first.request},
        )
        for index in range(1, count)
    ]
    return [first, *more]


def _params(body: ChatBody, offered: Tools) -> SamplingParams:
    top = body.top_logprobs
    if top is not None and not body.logprobs:
        raise refusal("top_logprobs", "top_logprobs needs logprobs: true")
    if top is not None and not 0 <= top <= MAX_TOP:
        raise refusal("top_logprobs", f"top_logprobs must be between 0 and {MAX_TOP}")
    try:
        return sampling(
            body,
            max_tokens=body.max_completion_tokens,
            logprobs=(top or 0) if body.logprobs else None,
            structured=structured(body.response_format, body.structured_outputs, offered),
        )
    except ApiError as error:
        longest = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        raise renamed(error, {"max_tokens": longest}) from None


class _Choice:
    """One answer, as it comes."""

    def __init__(self, request: str, parser: calls.Parser) -> None:
        self.request = request
        self.parser = parser
        self.content: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.scores: list[dict[str, Any]] = []
        self.ids: list[int] = []
        self.reason: str | None = None


class ChatAnswer:
    """Chunks and the whole completion out of the events of its requests.

    Args:
        given: What was asked of the engine.
        model: Name that clients see.
        created: Seconds since the epoch.
        options: What the stream says.
        spell: For log probabilities; None leaves them out.
        prompts: Token ids of the prompts, for theirs or if token ids are wanted; of each request.

    """

    def __init__(
        self,
        given: Plan,
        *,
        model: str,
        created: int,
        options: StreamOptions,
        spell: logprobs.Spell | None = None,
        prompts: Sequence[Sequence[int]] = (),
    ) -> None:
        requests, offered = given.requests, given.tools
        self._head = {
            "id": public_id("chatcmpl-", requests[0].request),
            "created": created,
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._choices = [
            _Choice(queued.request, calls.parser(offered.names, forced=offered.forced, model=model))
            for queued in requests
        ]
        self._parallel = offered.parallel
        self._options = options
        self._spell = spell
        self._scored = requests[0].params.logprobs is not None
        self._ids = given.ids
        self._prompts = prompts
        self._before: dict[int, list[Any]] = {}
        self._usage = Counter(len(requests), len(requests))

    # ---------------------------------------------------------------------------- stream

    def opening(self) -> bytes:
        """A chunk with the role for every choice."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        more = self._prompt_ids()
        return b"".join(self._chunk(index, delta, **more) for index in range(len(self._choices)))

    def feed(self, index: int, payload: Payload) -> bytes:
        """Chunks that say what happened to a request."""
        self._usage.feed(index, payload)
        choice = self._choices[index]
        match payload:
            case TokensGenerated():
                beside = self._beside(choice, payload)
                if payload.prompt_logprobs and self._spell is not None:
                    self._before[index] = logprobs.prompt(
                        payload.prompt_logprobs, self._prompts[index], self._spell
                    )
                return self._deltas(index, choice.parser.push(payload.text), beside)
            case RequestFinished(reason=reason):
                frames = self._deltas(index, choice.parser.finish(), {})
                choice.reason = "tool_calls" if choice.calls and reason == "stop" else reason
                return frames + self._chunk(index, {}, choice.reason)
            case _:
                return b""

    def closing(self) -> bytes:
        """The usage if it was asked for, and the end."""
        if not self._options.include_usage:
            return sse.DONE
        chunk = {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": self._usage.chat(),
        }
        return sse.data(chunk) + sse.DONE

    def broken(self, error: ApiError) -> bytes:
        """The error, and nothing behind it."""
        return sse.data(error.body())

    def _deltas(self, index: int, deltas: Sequence[calls.Delta], beside: dict[str, Any]) -> bytes:
        choice, frames = self._choices[index], b""
        for delta in deltas:
            if isinstance(delta, str):
                choice.content.append(delta)
                frames += self._chunk(index, {"content": delta}, beside=beside)
                beside = {}
            elif self._parallel or not choice.calls:
                call = {
                    "id": calls.call_id(choice.request, len(choice.calls)),
                    "type": "function",
                    "function": {"name": delta.name, "arguments": delta.arguments},
                }
                choice.calls.append(call)
                part = {"index": len(choice.calls) - 1, **call}
                frames += self._chunk(index, {"tool_calls": [part]}, beside=beside)
                beside = {}
        if beside:  # tokens without a text of their own, yet
            frames += self._chunk(index, {"content": ""}, beside=beside)
        return frames

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        reason: str | None = None,
        *,
        beside: Mapping[str, Any] = NOTHING,
        **more: Any,
    ) -> bytes:
        """A chunk; ``beside`` is what its choice has beside the delta."""
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": reason,
            **beside,
        }
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice], **more}
        if self._options.continuous_usage_stats:
            chunk["usage"] = self._usage.chat()
        elif self._options.include_usage:
            chunk["usage"] = None
        return sse.data(chunk)

    def _beside(self, choice: _Choice, payload: TokensGenerated) -> dict[str, Any]:
        """Log probabilities and ids of tokens, as far as they were asked for."""
        found: dict[str, Any] = {}
        if payload.logprobs and self._spell is not None:
            scores = logprobs.chat(payload.tokens, payload.logprobs, self._spell)
            choice.scores += scores
            if scores:
                found["logprobs"] = {"content": scores, "refusal": None}
        if self._ids and payload.tokens:
            choice.ids += payload.tokens
            found["token_ids"] = payload.tokens
        return found

    def _prompt_ids(self) -> dict[str, Any]:
        return {"prompt_token_ids": self._prompts[0]} if self._ids else {}

    # ----------------------------------------------------------------------------- whole

    def body(self) -> dict[str, Any]:
        """The whole completion."""
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._whole(index) for index in range(len(self._choices))],
            "usage": self._usage.chat(),
            **({"prompt_logprobs": self._before[0]} if 0 in self._before else {}),
            **self._prompt_ids(),
        }

    def _whole(self, index: int) -> dict[str, Any]:
        choice = self._choices[index]
        content = "".join(choice.content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not choice.calls else None,
            "refusal": None,
        }
        if choice.calls:
            message["tool_calls"] = choice.calls
        scores = {"content": choice.scores, "refusal": None} if self._scored else None
        return {
            "index": index,
            "message": message,
            "logprobs": scores,
            "finish_reason": choice.reason,
            **({"token_ids": choice.ids} if self._ids else {}),
        }

"""Sampling parameters as clients send them, and what they mean to the engine."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from app.engine.sampling import validate
from app.errors import InputError
from app.events.catalogue import SamplingParams
from app.transport.openai.errors import ApiError, of, refusal

__all__ = [
    "MAX_CHOICES",
    "Sampling",
    "StreamOptions",
    "sampling",
    "sender",
    "template_variables",
]

MAX_CHOICES = 128
"""Most answers to one HTTP request."""
_SEEDS = 2**63
#: Variables of a chat template that a client may not set.
_OWN = frozenset({"self", "messages", "tools", "documents"})


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream says beside its text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Sampling(msgspec.Struct, kw_only=True):
    """Fields that all endpoints which generate have in common. Absent is null."""

    model: str | None = None
    stream: bool = False
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] = {}
    stop: str | list[str] = []
    stop_token_ids: list[int] = []
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    seed: int | None = None
    prompt_logprobs: int | None = None
    priority: Annotated[int, Meta(gt=-(2**31), lt=2**31)] = 0
    cache_salt: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, Any] = {}
    structured_outputs: dict[str, Any] | None = None
    skip_special_tokens: bool = True


def sender(body: Any) -> dict[str, Any]:
    """What a body says of who sends it, and what is to be kept with it."""
    given = {"user": body.user or body.safety_identifier, "metadata": body.metadata or None}
    return {name: value for name, value in given.items() if value is not None}


def sampling(body: Sampling, **more: Any) -> SamplingParams:
    """Parameters of the engine; ``more`` are those that an endpoint names in its own way.

    Raises:
        ApiError: 400: one is out of range; its name is the client's.

    """
    if not 1 <= body.n <= MAX_CHOICES:
        raise refusal("n", f"n must be between 1 and {MAX_CHOICES}, not {body.n}")
    if not body.skip_special_tokens:
        raise refusal("skip_special_tokens", "control tokens have no text here")
    if body.prompt_logprobs is not None and body.stream:
        raise refusal("prompt_logprobs", "prompt_logprobs cannot be had in a stream")
    given: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": max(body.top_k, 0) if body.top_k == -1 else body.top_k,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "stop": (body.stop,) if isinstance(body.stop, str) else tuple(body.stop),
        "stop_token_ids": tuple(body.stop_token_ids),
        "max_tokens": body.max_tokens,
        "min_tokens": body.min_tokens,
        "ignore_eos": body.ignore_eos,
        "seed": secrets.randbits(63) if body.seed is None else body.seed % _SEEDS,
    }
    given |= {name: value for name, value in more.items() if value is not None}
    if body.logit_bias:
        given["logit_bias"] = biases(body.logit_bias)
    if body.prompt_logprobs is not None:
        given["prompt_logprobs"] = body.prompt_logprobs
    for name in given:
        if name not in SamplingParams.__struct_fields__:
            raise unsupported(name)
    params = msgspec.convert(given, type=SamplingParams)
    try:
        validate(params)
    except InputError as error:
        raise of(error) from None
    return params


def seeded(params: SamplingParams, choice: int) -> SamplingParams:
    """The same parameters with the seed of another choice."""
    assert params.seed is not None
    return msgspec.structs.replace(params, seed=(params.seed + choice) % _SEEDS)


def template_variables(given: Mapping[str, Any]) -> dict[str, Any]:
    """Variables for the chat template.

    Raises:
        ApiError: 400: one is not the client's to set.

    """
    for name in given:
        if name in _OWN or not name.isidentifier():
            raise refusal(f"chat_template_kwargs.{name}", f"{name} cannot be set")
    return dict(given)


def biases(given: Mapping[str, float]) -> dict[int, float]:
    """Bias by token id.

    Raises:
        ApiError: 400: a key is no token id, or a value is out of range.

    """
    found = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdigit()) or len(key) > 9:
            raise refusal("logit_bias", f"logit_bias: {key[:20]!r} is not a token id")
        if not -100 <= value <= 100:
            raise refusal("logit_bias", f"logit_bias.{key} must be between -100 and 100")
        found[int(key)] = value
    return found


def unsupported(name: str) -> ApiError:
    """A field that this server's engine cannot serve."""
    return refusal(name, f"{name} is not supported", code="unsupported_parameter")

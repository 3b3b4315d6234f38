"""How ``llm`` is to draw tokens: the keywords of its calls."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import msgspec

from app.config import ChatConfig
from app.engine.sampling import SamplingParams, Structured, validate
from app.errors import InputError

__all__ = ["Sampling", "sampling_params"]


class Sampling(TypedDict, total=False):
    """Keywords of ``llm.chat`` and ``llm.complete``; what is left out has no effect.

    ``temperature`` and ``max_tokens`` are taken from the settings ``chat.temperature`` and
    ``chat.max_tokens``, and a ``seed`` is drawn and recorded. For the rest see `SamplingParams`.
    """

    temperature: float | None
    max_tokens: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    min_tokens: int
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logit_bias: Mapping[int, float]
    logprobs: int | None
    prompt_logprobs: int | None
    structured: Structured | None
    processors: Mapping[str, Any]


def sampling_params(chat: ChatConfig, sampling: Mapping[str, Any]) -> SamplingParams:
    """Return what the log keeps of the keywords of a call.

    Raises:
        InputError: One is unknown, of the wrong type or out of range; ``field`` names it.

    """
    for name in sampling:
        if name not in Sampling.__annotations__:
            known = ", ".join(Sampling.__annotations__)
            raise InputError(
                "there is no such argument", field=f"llm.{name}", hint=f"It has {known}"
            )
    given = {name: value for name, value in sampling.items() if value is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    given.setdefault("temperature", chat.temperature)
    given.setdefault("max_tokens", chat.max_tokens)
    given.setdefault("seed", secrets.randbits(63))
    try:
        params = msgspec.convert(given, SamplingParams)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `")
        name = where.rstrip("`").removeprefix("key` in `").removeprefix("$.")
        raise InputError(
            what[:1].lower() + what[1:].replace("`", ""), field=f"llm.{name}"
        ) from None
    validate(params, prefix="llm")
    return params

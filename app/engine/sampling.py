"""Sampling parameters: the structs of the catalogue, and their validation."""

from __future__ import annotations

from app.errors import InputError
from app.events.catalogue import SamplingParams, Structured, TokenLogprobs

__all__ = [
    "MAX_BIASES",
    "MAX_LOGPROBS",
    "MAX_STOPS",
    "SamplingParams",
    "Structured",
    "TokenLogprobs",
    "validate",
    "validate_ids",
]

MAX_STOPS = 16
MAX_LOGPROBS = 20
"""Most alternatives whose probabilities can be had."""
MAX_BIASES = 1024
"""Most tokens whose logits can be changed."""
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "min_tokens": (0, 2**31),
    "max_tokens": (1, 2**31),
    "seed": (0, 2**63 - 1),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}


def validate(params: SamplingParams, *, prefix: str = "params", form: bool = True) -> None:
    """Check what can be checked without a model.

    Args:
        params: What is checked.
        prefix: Path of the parameters, for messages.
        form: Whether to compile the form of structured output too, which takes milliseconds.

    Raises:
        InputError: names the field, the value and what is allowed.

    """
    for name, (low, high) in _RANGES.items():
        value = getattr(params, name)
        if value is not None and not low <= value <= high:  # also refuses NaN
            raise InputError(
                f"must be {_between(low, high)}, not {value}", field=f"{prefix}.{name}"
            )
    if params.top_p == 0.0:
        raise InputError("must be above 0", field=f"{prefix}.top_p")
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        raise InputError("must not exceed max_tokens", field=f"{prefix}.min_tokens")
    if len(params.stop) > MAX_STOPS or any(not s for s in params.stop):
        raise InputError(f"at most {MAX_STOPS} strings, none empty", field=f"{prefix}.stop")
    if any(t < 0 for t in params.stop_token_ids):
        raise InputError("token ids are not negative", field=f"{prefix}.stop_token_ids")
    _validate_bias(params.logit_bias, f"{prefix}.logit_bias")
    if params.structured is not None and form:
        from app.engine.structured import check  # as late as this: few need it

        check(params.structured, field=f"{prefix}.structured")


def validate_ids(params: SamplingParams, vocab: int, *, prefix: str = "params") -> None:
    """Check token ids against a vocabulary of so many.

    Raises:
        InputError: There is no such token.

    """
    wrong = next((token for token in params.logit_bias if token >= vocab), None)
    if wrong is not None:
        raise InputError(
            f"token ids are 0 to {vocab - 1}, not {wrong}", field=f"{prefix}.logit_bias"
        )


def _between(low: float, high: float) -> str:
    if high == 2**63 - 1:
        return "between 0 and 2**63 - 1"
    return f"at least {low:g}" if high == 2**31 else f"between {low:g} and {high:g}"


def _validate_bias(bias: dict[int, float], field: str) -> None:
    if len(bias) > MAX_BIASES:
        raise InputError(f"at most {MAX_BIASES} tokens, not {len(bias)}", field=field)
    for token, value in bias.items():
        if token < 0:
            raise InputError(f"token ids are not negative, as {token} is", field=field)
        if not -100.0 <= value <= 100.0:
            raise InputError(f"must be between -100 and 100, not {value}", field=f"{field}.{token}")

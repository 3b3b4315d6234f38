"""Sampling parameters: the struct of the catalogue, and its validation."""

from __future__ import annotations

from app.errors import InputError
from app.events.catalogue import SamplingParams

__all__ = ["MAX_STOPS", "SamplingParams", "validate"]

MAX_STOPS = 16
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "min_tokens": (0, 2**31),
}


def validate(params: SamplingParams, *, prefix: str = "params") -> None:
    """Check ranges.

    Raises:
        InputError: names the field, the value and what is allowed.

    """
    for name, (low, high) in _RANGES.items():
        value = getattr(params, name)
        if not low <= value <= high:  # also refuses NaN
            raise InputError(
                f"must be between {low:g} and {high:g}, not {value}", field=f"{prefix}.{name}"
            )
    if params.top_p == 0.0:
        raise InputError("must be above 0", field=f"{prefix}.top_p")
    if params.max_tokens is not None and params.max_tokens < 1:
        raise InputError(
            f"must be at least 1, not {params.max_tokens}", field=f"{prefix}.max_tokens"
        )
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        raise InputError("must not exceed max_tokens", field=f"{prefix}.min_tokens")
    if len(params.stop) > MAX_STOPS or any(not s for s in params.stop):
        raise InputError(f"at most {MAX_STOPS} strings, none empty", field=f"{prefix}.stop")
    if any(t < 0 for t in params.stop_token_ids):
        raise InputError("token ids are not negative", field=f"{prefix}.stop_token_ids")
    if params.seed is not None and not 0 <= params.seed < 2**63:
        raise InputError("must be between 0 and 2**63 - 1", field=f"{prefix}.seed")

"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split convention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from app.errors import StartupError

__all__ = ["Rope", "frequencies"]


def frequencies(dim: int, theta: float, scaling: Mapping[str, Any] | None) -> torch.Tensor:
    """Angular frequencies, float64 ``[dim / 2]``.

    Args:
        dim: Width of a head.
        theta: Base.
        scaling: As in ``rope_scaling`` of a ``config.json``: types ``default``, ``linear`` and
            ``llama3`` (Llama 3.1 model card); or ``factors``, one divisor for each frequency, as
            GGUF files carry in ``rope_freqs.weight``.

    Raises:
        StartupError: another type of scaling.

    """
    base = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if not scaling:
        return base
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return base
    if kind == "factors":
        return base / torch.as_tensor(scaling["factors"], dtype=torch.float64)
    if kind == "linear":
        return base / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(base, scaling)
    raise StartupError(
        f"RoPE scaling of type {kind!r} is not supported",
        hint="Known: default, linear, llama3.",
    )


def _llama3(base: torch.Tensor, scaling: Mapping[str, Any]) -> torch.Tensor:
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    trained = float(scaling["original_max_position_embeddings"])
    turns = trained * base / (2 * math.pi)  # how often a dimension turns in the trained context
    smooth = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slow, divide; 1: fast, keep
    return (1 - smooth) * base / factor + smooth * base


class Rope:
    """Tables of cosines and signed sines for every position, and their application."""

    def __init__(
        self, freqs: torch.Tensor, context: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        # angles in float32, as the reference has them: float64 would differ from it far out
        angles = torch.outer(torch.arange(context, dtype=torch.float32), freqs.float())
        cos, sin = angles.cos(), angles.sin()
        self.half = freqs.numel()
        self._cos = torch.cat((cos, cos), -1).to(device, dtype)
        self._sin = torch.cat((-sin, sin), -1).to(device, dtype)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines for positions ``[N]``, each ``[N, 1, head_dim]``."""
        cos = self._cos.index_select(0, positions).unsqueeze(1)
        sin = self._sin.index_select(0, positions).unsqueeze(1)
        return cos, sin

    def __call__(self, x: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Rotate ``[N, heads, head_dim]``; a new tensor."""
        cos, sin = table
        return x.roll(self.half, -1).mul_(sin).addcmul_(x, cos)

"""Embeddings: hidden states of a prompt, pooled into one vector of length 1.

Pooling is as in Sentence-BERT (arXiv:1908.10084): the mean over all tokens, or the state of the
last one, which in a decoder is the only one that has seen all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from app.engine.sequence import Draw, Work

__all__ = ["Pooler"]


class Pooler:
    """Adds up hidden states of sequences that are only read, chunk by chunk."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}  # by request, float64 [width]

    def rows(self, work: Work) -> range:
        """Which of a work's places are wanted, counted from its start."""
        pooling = work.sequence.pooling
        if pooling is None:
            return range(0)
        if pooling.kind == "mean":
            return range(work.length)
        return range(work.length - 1, work.length) if work.ends else range(0)

    def add(self, works: Iterable[Work], hidden: torch.Tensor) -> None:
        """Take in a step.

        Args:
            works: In the order of the rows; others may be among them.
            hidden: The wanted places of all of them, ``[n, width]``.

        """
        at = 0
        for work in works:
            count = len(self.rows(work))
            if not count:
                continue
            part = hidden[at : at + count].double().sum(0)  # so that chunks make no difference
            at += count
            before = self._sums.get(work.sequence.request) if work.start else None
            self._sums[work.sequence.request] = part if before is None else before + part

    def draw(self, work: Work) -> Draw | None:
        """The vector of a work that ends its sequence; None for any other."""
        pooling = work.sequence.pooling
        if pooling is None or not work.ends:
            return None
        vector = self._sums.pop(work.sequence.request)[: pooling.dimensions]
        vector = vector / vector.norm().clamp_min(1e-12)  # the mean is this, scaled
        return Draw([], embedding=vector.cpu().numpy().astype("<f4").tobytes())

    def release(self, request: str) -> None:
        """Forget a request."""
        self._sums.pop(request, None)

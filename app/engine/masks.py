"""Sets of tokens as bits: which may follow. One bit a token, the least significant first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["Bits", "has", "less", "members", "restrict", "words"]

Bits = np.ndarray[Any, np.dtype[np.uint8]]
"""``[4 * words(vocab)]``; bits behind the vocabulary mean nothing."""


def words(vocab: int) -> int:
    """How many 32-bit words hold a bit for each token."""
    return -(-vocab // 32)


def has(bits: Bits, token: int) -> bool:
    """Whether a token is in the set."""
    return bool(bits[token >> 3] >> (token & 7) & 1)


def members(bits: Bits, vocab: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The tokens of a set, ascending."""
    return np.flatnonzero(np.unpackbits(bits, count=vocab, bitorder="little").view(np.bool_))


def less(bits: Bits, without: Iterable[int], vocab: int) -> Bits:
    """A set without some tokens; all of it if none would be left."""
    left = bits.copy()
    for token in without:
        if token < vocab:
            left[token >> 3] &= ~(1 << (token & 7)) & 0xFF
    return left if np.unpackbits(left, count=vocab, bitorder="little").any() else bits


def restrict(scores: torch.Tensor, sets: Mapping[int, Bits]) -> None:
    """Set the scores of tokens that are not in a row's set to minus infinity, in place.

    Args:
        scores: Float32 ``[R, vocab]``; finite or minus infinity.
        sets: By row.

    """
    # eight tokens at a time: a byte chooses a row of addends; several times as fast as bools
    if scores.device.type == "cpu":
        rows = scores.numpy()
        for row, bits in sets.items():  # one after the other, so that all stays in the cache
            rows[row] += _ADDENDS.take(bits, axis=0).reshape(-1)[: scores.shape[1]]
    elif sets:
        import torch  # only here: who checks a form, as every edge does, goes without it

        addends = _ADDENDS.take(np.stack(list(sets.values())), axis=0).reshape(len(sets), -1)
        index = torch.tensor(list(sets), device=scores.device)
        scores[index] += torch.from_numpy(addends[:, : scores.shape[1]]).to(scores.device)


_ADDENDS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0, -np.inf
).astype(np.float32)

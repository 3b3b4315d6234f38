"""Sets of tokens as bits: which may follow. One bit a token, the least significant first."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
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


def restrict(scores: torch.Tensor, sets: Seq[Bits]) -> torch.Tensor:
    """Float32 ``[sets, vocab]``: the scores, with minus infinity where a token is not in the set.

    Args:
        scores: ``[sets, vocab]`` or, for one set, ``[vocab]``; finite or minus infinity.
        sets: One for each row.

    """
    # eight at a time: a byte chooses a row of addends; several times as fast as masks of bools
    addends = np.take(_ADDENDS, np.stack(sets), axis=0).reshape(len(sets), -1)
    return scores + torch.from_numpy(addends[:, : scores.shape[-1]]).to(scores.device)


_ADDENDS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0, -np.inf
).astype(np.float32)

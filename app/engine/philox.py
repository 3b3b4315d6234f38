"""Random numbers as a pure function of a key and a counter.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
No state: a draw depends on (seed, position) alone, whatever was drawn before and beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["philox", "uniform"]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)

Words = np.ndarray[Any, np.dtype[np.uint64]]


def philox(counter: Words, key: Words) -> Words:
    """Ten rounds.

    Args:
        counter: ``[n, 4]``, 32-bit words in uint64.
        key: ``[n, 2]``, likewise.

    Returns:
        ``[n, 4]`` random 32-bit words in uint64.

    """
    c0, c1, c2, c3 = (counter[:, i] for i in range(4))
    k0, k1 = key[:, 0], key[:, 1]
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return np.stack((c0, c1, c2, c3), axis=1)


def uniform(seeds: list[int], positions: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One number in [0, 1), with 53 random bits, for each pair of seed (63 bits) and position."""
    seed, at = np.array(seeds, np.uint64), np.array(positions, np.uint64)
    none = np.zeros_like(at)
    key = np.stack((seed & _LOW, seed >> _HALF), axis=1)
    words = philox(np.stack((at & _LOW, at >> _HALF, none, none), axis=1), key)
    bits = (words[:, 0] << np.uint64(21)) ^ (words[:, 1] >> np.uint64(11))
    return bits.astype(np.float64) * 2.0**-53

"""A histogram in memory: what a process measures of itself. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["Meter"]


class Meter:
    """Counts values in buckets.

    Attributes:
        bounds: Upper bounds of the buckets, inclusive; one more bucket takes what is above.
        counts: How many values each bucket has.
        sum: Of all values.

    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

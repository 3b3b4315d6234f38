"""Clocks that jump. Pure."""

from __future__ import annotations

__all__ = ["steady"]

STEP = 60 * 10**9
"""A clock that is set back by more (ns) was wrong before; by less, it may be so again."""


def steady(now: int, last: int) -> int:
    """Time of an event: never before the one that the same process wrote last, within reason.

    A clock once far in the future must not stamp all that comes until then with one time.
    """
    return max(now, last) if now > last - STEP else now

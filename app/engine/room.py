"""When a host had no room, and what came meanwhile. Pure."""

from __future__ import annotations

import math

__all__ = ["Room"]


class Room:
    """Says which requests a full host should look for, and why those it claims had to wait."""

    def __init__(self) -> None:
        self._opened = 0.0  # since when there is a core, in seconds since the epoch
        self._emptied = 0.0  # since when there is room again
        self._full = False
        self._highest = math.inf  # priority of what waits, as far as known

    def opened(self, now: float) -> None:
        """There is a core."""
        self._opened, self._full = now, False
        self._highest = math.inf

    def filled(self) -> None:
        """There is no room."""
        self._full = True

    def emptied(self, now: float) -> None:
        """There is room."""
        if self._full:
            self._full, self._emptied = False, now

    def note(self, priority: float) -> None:
        """A request of some priority waits."""
        self._highest = max(self._highest, priority)

    def wanted(self, lowest: int) -> bool:
        """Whether something above a priority may wait."""
        return self._highest > lowest

    def served(self, lowest: int) -> None:
        """Nothing above a priority waits."""
        self._highest = min(self._highest, lowest)

    def waited(self, came: float) -> str:
        """Why a request was not claimed when it came: ``worker``, ``room``, or nothing."""
        if came < self._opened:
            return "worker"
        return "room" if self._full or came < self._emptied else ""

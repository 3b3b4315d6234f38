"""The client's half of exact resume, as plain code: what to do with an ``events`` frame."""

from __future__ import annotations

from typing import Literal

from app.transport.protocol import Events, Reset

__all__ = ["ClientCursor", "Verdict"]

Verdict = Literal["apply", "drop", "reopen"]


class ClientCursor:
    """Where a client stands in one thread.

    It starts at what the client sends as ``after``, not at 0, so that a connection lost before
    its first frame resumes at the same place.
    """

    __slots__ = ("incarnation", "version")

    def __init__(self, version: int = 0, incarnation: str | None = None) -> None:
        self.version = version
        self.incarnation = incarnation

    def events(self, frame: Events) -> Verdict:
        """Judge a frame, and move on if it is to be applied.

        ``apply``: it begins right after the cursor. ``drop``: all of it was applied before.
        ``reopen``: it leaves a hole, or overlaps; open the thread again after the cursor.
        """
        if frame.first == self.version + 1 and frame.last >= frame.first:
            self.version = frame.last
            return "apply"
        return "drop" if frame.last <= self.version else "reopen"

    def reset(self, frame: Reset, incarnation: str) -> None:
        """Take the server's word for where this is."""
        self.version = frame.version
        self.incarnation = incarnation

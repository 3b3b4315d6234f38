"""Streams known not to exist, so that a new conversation costs no look into the database.

A client asks for a conversation several times before its first event is written. Only the process
that writes may remember the answer: it hears of every stream that begins.
"""

from __future__ import annotations

__all__ = ["Absent"]

_CONFIRMED = object()


class Absent:
    """Bounded memory of absent streams. Pure; safe between asking the database and its answer.

    Args:
        limit: Most streams remembered.

    """

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._marks: dict[str, object] = {}

    def __contains__(self, stream: str) -> bool:
        return self._marks.get(stream) is _CONFIRMED

    def asking(self, stream: str) -> object:
        """The database is about to be asked; give what this returns to `answered`."""
        if len(self._marks) >= self._limit:
            self._marks.clear()
        mark = self._marks[stream] = object()
        return mark

    def answered(self, stream: str, mark: object, *, exists: bool) -> None:
        """It has answered. An answer that a commit or a later question overtook is not kept."""
        if self._marks.get(stream) is mark:
            if exists:
                del self._marks[stream]
            else:
                self._marks[stream] = _CONFIRMED

    def began(self, stream: str) -> None:
        """Its first event was committed."""
        self._marks.pop(stream, None)

    def clear(self) -> None:
        """Forget everything: the database may have changed unseen."""
        self._marks.clear()

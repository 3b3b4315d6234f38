"""From output tokens to text, one token at a time: whole characters, and no stop strings.

The text given out after n tokens depends on these n tokens alone. So a request that goes on
elsewhere replays its committed tokens silently, and what comes next joins their text exactly: text
that was held back behind them comes out with the first new token that makes it certain.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable

__all__ = ["Detokenizer"]


class Detokenizer:
    """Text of one request's output.

    Bytes that are not UTF-8 become U+FFFD exactly as in ``bytes.decode("utf-8", "replace")`` of
    the whole output. A suffix that may become a stop string is held back; at a stop string the
    text ends before it.

    Args:
        token_bytes: Bytes of a token; empty for special tokens.
        stop: Strings that end the output; none is empty.
        min_tokens: Stop strings are looked for only in the text of tokens behind the first so
            many.

    """

    __slots__ = ("_bytes", "_decoder", "_held", "_skip", "_stops", "stopped")

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        stop: Iterable[str] = (),
        *,
        min_tokens: int = 0,
    ) -> None:
        self._bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._stops = tuple(stop)
        self._skip = min_tokens
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that became certain. At a stop, ``stopped`` is set."""
        return self._add(self._decoder.decode(self._bytes(token)))

    def replay(self, tokens: Iterable[int]) -> None:
        """Add tokens whose text was given out before."""
        for token in tokens:
            self.push(token)

    def finish(self) -> str:
        """Return what was held back, when no more tokens come."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        return text

    def _add(self, text: str) -> str:
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        if self._skip:
            self._skip -= 1
            return text
        text = self._held + text
        cut = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            self.stopped = True
            self._held = ""
            return text[:cut]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of ``text`` that begins ``stop`` (and is not all of it)."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

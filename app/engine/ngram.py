"""Foretelling tokens by what stands in the text already: prompt lookup.

Where the last tokens of a text occurred before, what followed them then is foretold to follow now
(Saxena, "Prompt Lookup Decoding", 2023; Yang et al., arXiv:2304.04487). Earlier places are found
as LZ77 compressors find them: each pair of tokens leads to its last occurrence, and each occurrence
to the one before, so a token costs one dictionary entry, however long the text is.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

__all__ = ["Foretold", "Ngrams"]

_CHAIN = 16  # earlier places looked at
_LONGEST = 12  # a match this long is as good as any longer one
_SHIFT = 32


class Foretold(NamedTuple):
    """Tokens that may follow, and how many tokens before them matched an earlier place."""

    tokens: tuple[int, ...]
    matched: int


class Ngrams:
    """Earlier places in one text that grows at its end."""

    __slots__ = ("_before", "_last", "_seen")

    def __init__(self) -> None:
        self._last: dict[int, int] = {}  # by pair: the last place behind it
        self._before: list[int] = [0, 0]  # by place: the one before behind the same pair; 0: none
        self._seen = 0

    def foretell(self, tokens: Seq[int], count: int) -> Foretold:
        """What may follow a text, ``count`` tokens or none.

        The longest match wins, of equals the last. A text that repeats itself up to its end is
        foretold to go on like that.

        Args:
            tokens: The text; at every call the one of the last call, and what was added.
            count: At least 1.

        """
        self._extend(tokens)
        end = len(tokens)
        place = self._before[end] if end >= 2 else 0
        best = longest = 0
        for _ in range(_CHAIN):
            if not place:
                break
            matched = _matched(tokens, place)
            if matched > longest:
                best, longest = place, matched
            if matched >= _LONGEST:
                break
            place = self._before[place]
        if not best:
            return Foretold((), 0)
        period = end - best
        return Foretold(tuple(tokens[best + i % period] for i in range(count)), longest)

    def _extend(self, tokens: Seq[int]) -> None:
        last, before = self._last, self._before
        for place in range(max(2, self._seen + 1), len(tokens) + 1):
            pair = tokens[place - 2] << _SHIFT | tokens[place - 1]
            before.append(last.get(pair, 0))
            last[pair] = place
        self._seen = len(tokens)


def _matched(tokens: Seq[int], place: int) -> int:
    """How many tokens before a place equal those at the end; the two of the pair do."""
    end = len(tokens)
    count = 2
    while count < min(place, _LONGEST) and tokens[place - 1 - count] == tokens[end - 1 - count]:
        count += 1
    return count

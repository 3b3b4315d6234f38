"""Words of a text, as full-text search sees them, for databases that cannot find them alike.

SQLite's FTS5 finds words by itself (``unicode61 remove_diacritics 2``). Postgres has parsers of
its own, which know hosts, files and hyphens; so that both find the same, Postgres is given the
very words FTS5 would see: runs of letters and digits, lower case, Latin ones without diacritics.
"""

from __future__ import annotations

import unicodedata

__all__ = ["split", "tsquery", "tsvector", "wanted"]

MAX_WORDS = 32
"""Words of a search; more are left out."""

LONGEST = 500
"""Characters of a word that count; Postgres takes 2,046 bytes."""

POSITIONS = 255
"""Places of one word that Postgres keeps."""

LAST_POSITION = 16_383
FULL = 900_000
"""Bytes of words of one text; Postgres takes 1 MiB, places included."""


class _Folding(dict[int, str]):
    """Character -> what is left of it: a letter, nothing (a diacritic) or a space."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if 0x300 <= code <= 0x331:
            folded = ""
        elif not char.isalnum() and unicodedata.category(char) != "Co":
            folded = " "
        else:
            parts = unicodedata.normalize("NFD", char)
            lower = char.casefold() if len(char.casefold()) == 1 else char.lower()
            folded = parts[0].lower() if len(parts) > 1 and parts[0].isascii() else lower
        self[code] = folded
        return folded


_FOLDING = _Folding()


def split(text: str) -> list[str]:
    """Return the words of a text."""
    return text.translate(_FOLDING).split()


def wanted(search: str) -> list[str]:
    """Return what a person searches for: pieces with at least one letter or digit."""
    words = [word for word in search.replace("\0", " ").split() if any(map(str.isalnum, word))]
    return words[:MAX_WORDS]


def tsvector(text: str) -> str:
    """Return the words of a text with their places, as Postgres reads a ``tsvector``."""
    places: dict[str, list[str]] = {}
    size = 0
    for at, word in enumerate(split(text), 1):
        found = places.get(word := word[:LONGEST])
        if found is None:
            size += 4 * len(word) + 8
            if size > FULL:
                break
            found = places[word] = []
        if len(found) < POSITIONS:
            size += 2
            found.append(str(min(at, LAST_POSITION)))
    return " ".join([f"{word}:{','.join(found)}" for word, found in places.items()])


def tsquery(search: str) -> str | None:
    """Turn what a person typed into a ``tsquery``; None if it has no word.

    As in FTS5: all of it must be there, each piece as its words in a row, the last a beginning.
    """
    pieces = []
    for piece in wanted(search):
        words = [f"'{word[:LONGEST]}'" for word in split(piece)]
        if words:
            pieces.append(f"({' <-> '.join(words)}:*)")
    return " & ".join(pieces) or None

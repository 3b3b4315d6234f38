"""Which foretold tokens are worth computing along with a step: speculation that pays, or none.

Drafts never change an answer, only its speed: the model computes the drafted places in the same
pass, and each is kept only if it is what would have been drawn there (Leviathan et al.,
arXiv:2211.17192; here draws are functions of seed and position, so equal draws need no rejection
sampling). A step with more rows takes longer, so for every step what drafts are likely to bring is
weighed against what their rows cost:

- How likely a foretold token is right is learned for each sequence, apart for short and for long
  matches, from all that was foretold, also from what was never computed: that costs nothing.
- How long a step with so many rows takes is learned from the steps themselves.

So speculation is off by itself for texts that repeat nothing, for batches whose rows are dear, and
on machines where a second row costs as much as the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq

import numpy as np

from app.engine.ngram import Foretold, Ngrams
from app.engine.sequence import Sequence, Work

__all__ = ["Pace", "Speculator"]

_LONG = 4  # tokens of a long match
_PRIORS = ((0.8, 2.0), (1.6, 2.0))  # right, of how many: short matches, long ones
_FADE = 0.9  # what a trial still counts at the next one
_SURE = 0.98
_GAIN = 1.1  # by how much drafts must promise to be faster
_STALE = 500  # decisions after which a time must be measured again


class Pace:
    """How long a step takes, by its rows (tokens computed).

    Times that are shorter than expected count more: others on the machine only ever add to them.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[float, float, int]] = {}  # by size: rows, seconds, when
        self._now = 0

    def add(self, rows: float, seconds: float) -> None:
        """A step took so long."""
        size = _size(rows)
        known = self._found.get(size)
        if known is not None:
            weight = 0.5 if seconds < known[1] else 0.1
            seconds = known[1] + weight * (seconds - known[1])
            rows = known[0] + weight * (rows - known[0])
        self._found[size] = (rows, seconds, self._now)

    def curve(self, rows: int) -> tuple[list[float], list[float]] | None:
        """Rows and seconds, ascending; None if a step of ``rows`` must be measured first."""
        self._now += 1
        old = [s for s, (*_, when) in self._found.items() if self._now - when > _STALE]
        for size in old:
            del self._found[size]
        if _size(rows) not in self._found:
            return None
        points = sorted(self._found.values())
        # more rows never take less, whatever was measured
        seconds = np.maximum.accumulate([p[1] for p in points]).tolist()
        return [p[0] for p in points], seconds


def _size(rows: float) -> int:
    return round(2 * math.log2(rows))


class _Track:
    """What was foretold for a sequence, and how often it was right."""

    def __init__(self) -> None:
        self.ngrams = Ngrams()
        self.trials = [list(prior) for prior in _PRIORS]
        self.foretold = Foretold((), 0)
        self.at = 0  # place of its first token

    def foretell(self, tokens: Seq[int], count: int) -> None:
        """Learn from what came since, and look ahead again."""
        came = tokens[self.at : self.at + len(self.foretold.tokens)]
        trial = self.trials[self.foretold.matched >= _LONG]
        for token, foretold in zip(came, self.foretold.tokens, strict=False):
            right = token == foretold
            trial[0] = trial[0] * _FADE + right
            trial[1] = trial[1] * _FADE + 1
            if not right:
                break
        self.at = len(tokens)
        self.foretold = self.ngrams.foretell(tokens, count)

    def chance(self) -> float:
        """How likely the next foretold token is right, if those before it are."""
        right, trials = self.trials[self.foretold.matched >= _LONG]
        return min(_SURE, right / trials)


class Speculator:
    """Drafts for the sequences of a step.

    Args:
        longest: Most tokens drafted for a sequence in a step.

    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._tracks: dict[str, _Track] = {}
        self._pace = Pace()

    def propose(
        self, sequences: Seq[Sequence], rooms: Seq[int], budget: int
    ) -> list[tuple[int, ...]]:
        """Tokens that are worth computing behind the last token of each sequence.

        Args:
            sequences: All that get their next token in the step.
            rooms: How many drafted tokens each can use at most.
            budget: How many there may be in all.

        """
        found = []  # chance that the draft is right up to there, sequence, place in the draft
        for index, (sequence, room) in enumerate(zip(sequences, rooms, strict=True)):
            track = self._tracks.get(sequence.request)
            if track is None:
                track = self._tracks[sequence.request] = _Track()
            track.foretell(sequence.tokens, self._longest)
            chance = track.chance()
            most = min(room, len(track.foretold.tokens))
            found += [(chance ** (place + 1), index, place) for place in range(most)]
        lengths = [0] * len(sequences)
        curve = self._pace.curve(len(sequences)) if found else None
        if curve is not None:
            found.sort(key=lambda one: -one[0])
            for _, index, _ in found[: min(budget, _worth(found, len(sequences), curve))]:
                lengths[index] += 1
        return [
            self._tracks[sequence.request].foretold.tokens[:length]
            for sequence, length in zip(sequences, lengths, strict=True)
        ]

    def timed(self, works: Seq[Work], seconds: float) -> None:
        """Learn from a step that took so long."""
        if all(work.length == 1 for work in works):
            self._pace.add(sum(1 + len(work.drafts) for work in works), seconds)

    def release(self, request: str) -> None:
        """Forget a request."""
        self._tracks.pop(request, None)


def _worth(
    found: Seq[tuple[float, int, int]], rows: int, curve: tuple[list[float], list[float]]
) -> int:
    """How many of the drafted tokens make the step bring most tokens a second."""
    total = np.arange(rows, rows + len(found) + 1)
    brought = rows + np.concatenate(([0.0], np.cumsum([chance for chance, *_ in found])))
    speed = brought / np.interp(total, *curve)
    best = int(speed.argmax())
    return best if speed[best] > _GAIN * speed[0] else 0

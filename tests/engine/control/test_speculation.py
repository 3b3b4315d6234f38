"""What is foretold, and when it is worth computing."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from app.engine.ngram import Ngrams
from app.engine.sampling import SamplingParams
from app.engine.sequence import Sequence, Work
from app.engine.speculation import Speculator

PLAIN = SamplingParams()


def longest(tokens: list[int]) -> int:
    """Length of the longest end that occurred before (at most 12; 0 if shorter than 2)."""
    for length in range(min(12, len(tokens) - 1), 1, -1):
        end = tokens[-length:]
        if any(tokens[i : i + length] == end for i in range(len(tokens) - length)):
            return length
    return 0


@given(
    tokens=st.lists(st.integers(0, 3), max_size=40),
    steps=st.lists(st.integers(1, 5), max_size=10),
)
def test_the_longest_match_is_found_however_the_text_came(
    tokens: list[int], steps: list[int]
) -> None:
    ngrams, end = Ngrams(), 0
    for step in [*steps, 100]:
        end = min(len(tokens), end + step)
        text = tokens[:end]
        found = ngrams.foretell(text, 4)
        assert found == Ngrams().foretell(text, 4)
        assert found.matched <= longest(text)
        assert (found.matched >= 2) == (longest(text) >= 2) == (len(found.tokens) == 4)
        if found.matched:
            whole = text + list(found.tokens)
            period = next(
                p
                for p in range(1, end)
                if all(whole[i] == whole[i - p] for i in range(end - found.matched, end + 4))
            )
            assert period < end


def test_what_followed_is_foretold_and_repetition_goes_on() -> None:
    assert Ngrams().foretell([1, 2, 3, 4, 5, 9, 2, 3], 3).tokens == (4, 5, 9)
    assert Ngrams().foretell([7, 8, 7, 8, 7, 8], 5).tokens == (7, 8, 7, 8, 7)
    assert Ngrams().foretell([5, 1, 2, 8, 6, 1, 2, 9, 5, 1, 2], 1).tokens == (8,)  # longer wins
    assert Ngrams().foretell([1, 2, 3], 4).tokens == ()
    assert Ngrams().foretell([1], 4).tokens == ()


class Machine:
    """Steps of sequences whose next tokens are known, in a time that is a function of the rows."""

    def __init__(self, texts: list[list[int]], prompt: int, cost: dict[int, float]) -> None:
        self.texts, self.cost = texts, cost
        self.speculator = Speculator(8)
        self.sequences = [Sequence(str(i), text[:prompt], PLAIN) for i, text in enumerate(texts)]
        self.seconds = 0.0
        self.drafted = self.right = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            rooms = [len(t) - len(s.tokens) - 1 for t, s in self.pairs()]
            drafts = self.speculator.propose(self.sequences, rooms, 64)
            works = [
                Work(s, len(s.tokens) - 1, 1, draft)
                for s, draft in zip(self.sequences, drafts, strict=True)
            ]
            rows = sum(work.places for work in works)
            seconds = max(cost for least, cost in self.cost.items() if rows >= least)
            self.speculator.timed(works, seconds)
            self.seconds += seconds
            for text, work in zip(self.texts, works, strict=True):
                at = len(work.sequence.tokens)
                count = 0
                while count < len(work.drafts) and work.drafts[count] == text[at + count]:
                    count += 1
                self.drafted += len(work.drafts)
                self.right += count
                work.sequence.tokens += text[at : at + count + 1]

    def pairs(self) -> list[tuple[list[int], Sequence]]:
        return list(zip(self.texts, self.sequences, strict=True))

    def brought(self, prompt: int) -> int:
        return sum(len(s.tokens) - prompt for s in self.sequences)


def copied(seed: int = 0, length: int = 200) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1000) for _ in range(length)] * 2


CHEAP = {1: 1.0, 2: 1.7, 5: 2.0}
"""More rows take longer, but not by much: a small batch."""
DEAR = {rows: float(rows) for rows in range(1, 100)}
"""Every row takes as long as the first."""


def test_a_copy_is_drafted_where_rows_are_cheap() -> None:
    machine = Machine([copied()], 205, CHEAP)
    machine.run(24)
    assert machine.brought(205) / machine.seconds > 2.0
    assert machine.right / machine.drafted > 0.95


def test_nothing_is_drafted_where_every_row_costs_as_much() -> None:
    machine = Machine([copied()], 205, DEAR)
    machine.run(100)
    assert machine.drafted <= 16  # that is how it found out
    assert machine.brought(205) / machine.seconds > 0.85


def test_wrong_drafts_stop_and_right_ones_come_again() -> None:
    rng = random.Random(1)
    pairs = [(rng.randrange(8), rng.randrange(8)) for _ in range(300)]
    noise = [token for pair in pairs for token in pair]  # matches everywhere that foretell nothing
    machine = Machine([noise + copied(2, 100)], 50, CHEAP)
    [sequence] = machine.sequences
    while len(sequence.tokens) < 702:
        machine.run(1)
    assert machine.drafted < 120
    before = machine.right
    machine.run(15)
    assert machine.right - before > 40


def test_of_a_batch_only_the_copies_are_drafted() -> None:
    rng = random.Random(1)
    noise = [rng.randrange(8) for _ in range(600)]
    machine = Machine([noise, copied()], 205, CHEAP | {1: 1.0, 2: 1.2, 9: 1.3})
    machine.run(24)
    noisy, copy = machine.sequences
    assert len(copy.tokens) > 300
    assert len(noisy.tokens) < 300


def test_times_are_measured_again() -> None:
    machine = Machine([copied(0, 2000)], 2005, DEAR)
    machine.run(60)
    machine.cost = CHEAP
    before = machine.drafted
    machine.run(1200)
    assert machine.drafted - before > 200


def test_a_forgotten_request_starts_anew() -> None:
    machine = Machine([copied()], 205, CHEAP)
    machine.run(5)
    machine.speculator.release("0")
    machine.speculator.release("0")
    machine.sequences = [Sequence("0", [1, 2, 3], PLAIN)]
    machine.texts = [[1, 2, 3, 4, 5, 6, 7]]
    machine.run(3)
    assert machine.sequences[0].tokens == [1, 2, 3, 4, 5, 6]

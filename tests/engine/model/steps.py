"""Driving a runner by hand: sequences with blocks, prefill, decode."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq

from app.engine.runner import ModelRunner
from app.engine.sampling import SamplingParams
from app.engine.sequence import Sequence, Work

GREEDY = SamplingParams()


class Bench:
    """Hands out blocks in a shuffled order, so that no test passes by luck of the layout."""

    def __init__(self, runner: ModelRunner, seed: int = 0) -> None:
        self.runner = runner
        self.free = list(range(runner.info.num_blocks))
        random.Random(seed).shuffle(self.free)
        self.made = 0

    def sequence(self, tokens: Seq[int], params: SamplingParams = GREEDY) -> Sequence:
        self.made += 1
        sequence = Sequence(f"r{self.made}", list(tokens), params)
        self.grow(sequence)
        return sequence

    def grow(self, sequence: Sequence) -> None:
        while len(sequence.blocks) * self.runner.info.block_size < len(sequence.tokens):
            sequence.blocks.append(self.free.pop())

    def prefill(self, sequence: Sequence, start: int = 0) -> Work:
        return Work(sequence, start, len(sequence.tokens) - start)

    def decode(self, sequence: Sequence) -> Work:
        self.grow(sequence)
        return Work(sequence, len(sequence.tokens) - 1, 1)

    def generate(self, sequences: Seq[Sequence], count: int) -> list[list[int]]:
        """Prefill all, then decode all together; the output tokens of each."""
        works = [self.prefill(s) for s in sequences]
        for _ in range(count):
            for work, draw in zip(works, self.runner.execute(works), strict=True):
                assert draw is not None
                work.sequence.tokens += draw.tokens
            works = [self.decode(s) for s in sequences]
        return [s.tokens[s.prompt_len :] for s in sequences]


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random tokens, none of them special."""
    numbers = random.Random(seed * 1000 + length)
    return [numbers.randrange(17, 49152) for _ in range(length)]

"""Blocks: none leaked, none owned twice unless shared, equal prefixes found again."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.engine.blocks import BlockManager
from app.engine.sampling import SamplingParams
from app.engine.sequence import Sequence

SIZE = 4


def sequence(name: str, tokens: list[int], salt: str | None = None) -> Sequence:
    return Sequence(name, tokens, SamplingParams(), salt=salt)


def computed(blocks: BlockManager, seq: Sequence) -> None:
    seq.computed = len(seq.tokens)
    blocks.record(seq)


def test_an_equal_prefix_is_shared_but_never_the_last_token() -> None:
    blocks = BlockManager(8, SIZE)
    first = sequence("a", list(range(8)))
    assert blocks.allocate(first)
    computed(blocks, first)
    same, longer = sequence("b", list(range(8))), sequence("c", list(range(10)))
    assert blocks.allocate(same)
    assert (same.blocks[0], same.cached) == (first.blocks[0], SIZE)  # the second block is computed
    assert blocks.references(first.blocks[0]) == 2
    assert blocks.allocate(longer)
    assert longer.blocks[:2] == first.blocks
    assert longer.computed == longer.cached == 8


def test_what_is_not_computed_is_not_shared() -> None:
    blocks = BlockManager(8, SIZE)
    first, second = sequence("a", list(range(9))), sequence("b", list(range(9)))
    assert blocks.allocate(first)
    first.computed = 5
    blocks.record(first)
    assert blocks.allocate(second)
    assert second.blocks[0] == first.blocks[0]
    assert second.blocks[1] != first.blocks[1]


@pytest.mark.parametrize(("salts", "shared"), [(("x", "x"), True), (("x", "y"), False)])
def test_a_salt_keeps_prefixes_apart(salts: tuple[str, str], shared: bool) -> None:
    blocks = BlockManager(8, SIZE)
    first = sequence("a", list(range(9)), salts[0])
    assert blocks.allocate(first)
    computed(blocks, first)
    second = sequence("b", list(range(9)), salts[1])
    assert blocks.allocate(second)
    assert (second.cached > 0) == shared


def test_equal_blocks_after_different_ones_are_not_shared() -> None:
    blocks = BlockManager(8, SIZE)
    first = sequence("a", [1, 1, 1, 1, 7, 7, 7, 7, 0])
    assert blocks.allocate(first)
    computed(blocks, first)
    second = sequence("b", [2, 2, 2, 2, 7, 7, 7, 7, 0])
    assert blocks.allocate(second)
    assert second.cached == 0


def test_the_least_recently_freed_is_evicted_first_and_the_tail_before_the_prefix() -> None:
    blocks = BlockManager(6, SIZE)
    old, new = sequence("old", [1] * 12), sequence("new", [2] * 12)
    for seq in (old, new):
        assert blocks.allocate(seq)
        computed(blocks, seq)
    blocks.free(old)
    blocks.free(new)
    other = sequence("other", [3] * 8)
    assert blocks.allocate(other)  # evicts the last two blocks of `old`
    blocks.free(other)
    again = sequence("again", [2] * 13)
    assert blocks.allocate(again)
    assert again.cached == 12
    blocks.free(again)
    oldest = sequence("oldest", [1] * 13)
    assert blocks.allocate(oldest)
    assert oldest.cached == 4


def test_too_large_changes_nothing() -> None:
    blocks = BlockManager(3, SIZE)
    first = sequence("a", list(range(9)))
    assert blocks.allocate(first)
    computed(blocks, first)
    blocks.free(first)
    large = sequence("b", list(range(16)))
    assert not blocks.allocate(large)
    assert (large.blocks, blocks.available) == ([], 3)
    assert not blocks.allocate(sequence("c", [1, 2]), reserve=3)
    assert blocks.allocate(sequence("d", [1, 2]), reserve=2)


def test_without_prefix_cache_nothing_is_shared() -> None:
    blocks = BlockManager(8, SIZE, prefix_cache=False)
    for name in "ab":
        seq = sequence(name, list(range(9)))
        assert blocks.allocate(seq)
        computed(blocks, seq)
        assert seq.cached == 0


class Blocks(RuleBasedStateMachine):
    """Random lives of sequences over few tokens, so that prefixes collide all the time.

    ``content`` is what a real cache would hold: for each block, the tokens written to it and all
    the tokens before them. A sequence must read its own history in its blocks, whoever wrote it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(7, 2)
        self.live: list[Sequence] = []
        self.content: dict[tuple[int, int], tuple[str | None, tuple[int, ...]]] = {}
        self.names = 0

    def write(self, seq: Sequence, upto: int) -> None:
        for position in range(seq.computed, upto):
            block = seq.blocks[position // 2]
            assert self.blocks.references(block) == 1, "a shared block is written"
            history = (seq.salt, tuple(seq.tokens[: position + 1]))
            self.content[block, position % 2] = history
        seq.computed = upto
        self.blocks.record(seq)

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9),
        salt=st.sampled_from([None, "s"]),
    )
    def join(self, tokens: list[int], salt: str | None) -> None:
        self.names += 1
        seq = sequence(str(self.names), tokens, salt)
        before = self.blocks.available
        if self.blocks.allocate(seq):
            self.live.append(seq)
            assert seq.computed < len(seq.tokens)
        else:
            assert self.blocks.available == before < self.blocks.needed(len(tokens))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.live))
        self.write(seq, data.draw(st.integers(seq.computed, len(seq.tokens))))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token=st.integers(0, 1))
    def generate(self, data: st.DataObject, token: int) -> None:
        seq = data.draw(st.sampled_from(self.live))
        self.write(seq, len(seq.tokens))
        seq.tokens.append(token)
        if not self.blocks.grow(seq):
            assert self.blocks.available == 0
            seq.tokens.pop()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.live))
        self.live.remove(seq)
        self.blocks.free(seq)
        assert (seq.blocks, seq.computed) == ([], 0)

    @invariant()
    def every_block_is_free_or_owned_by_as_many_as_refer_to_it(self) -> None:
        owners = Counter(block for seq in self.live for block in seq.blocks)
        for block in range(7):
            assert self.blocks.references(block) == owners[block]
        assert self.blocks.available == 7 - len(owners)
        assert all(len(set(seq.blocks)) == len(seq.blocks) for seq in self.live)

    @invariant()
    def everyone_reads_its_own_history(self) -> None:
        for seq in self.live:
            for position in range(seq.computed):
                history = (seq.salt, tuple(seq.tokens[: position + 1]))
                assert self.content[seq.blocks[position // 2], position % 2] == history

    def teardown(self) -> None:
        for seq in self.live:
            self.blocks.free(seq)
        assert self.blocks.available == 7


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

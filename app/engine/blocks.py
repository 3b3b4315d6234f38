"""Who owns which block of the KV cache: references, and computed prefixes that others can reuse.

Pure bookkeeping over block numbers; the tensors are in ``app.engine.cache``. Paged blocks are from
PagedAttention (arXiv:2309.06180). A full, computed block is found again by a chained hash: the
digest of its parent block and its own tokens, with the sequence's salt at the root, so a block is
shared only between sequences that are equal from position 0 to the block's end.

A sequence that got blocks promises what it will compute, so that another with the same prefix can
wait for it instead of computing it too.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

from app.engine.sequence import Sequence

__all__ = ["BlockManager"]


class BlockManager:
    """Hand out fixed-size blocks.

    A block is *blank* (free, content worthless), *findable* (free, but its content may be wanted
    again; evicted least recently freed first) or *owned* by one or more sequences. Only full
    computed blocks are ever shared, and a sequence writes only behind its full computed blocks,
    so no shared block is written.

    Args:
        num_blocks: Blocks in the cache.
        block_size: Tokens in a block.
        prefix_cache: Whether computed blocks are shared and kept findable.

    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self._references = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._findable: OrderedDict[int, None] = OrderedDict()
        self._by_digest: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._promised: dict[bytes, str] = {}  # by digest: who is going to compute that block

    @property
    def available(self) -> int:
        """How many blocks nobody owns."""
        return len(self._blank) + len(self._findable)

    def references(self, block: int) -> int:
        """How many sequences own a block."""
        return self._references[block]

    def needed(self, tokens: int) -> int:
        """How many blocks hold that many tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, sequence: Sequence, *, reserve: int = 0) -> bool:
        """Give a sequence without blocks what all its tokens need, all or nothing.

        Computed blocks of an equal prefix are shared; ``computed`` and ``cached`` are set to what
        they hold. The last token is never taken from the cache: its logits are wanted.

        Args:
            sequence: Owns no blocks.
            reserve: Blocks that must stay available.

        """
        shared = self._match(sequence)
        missing = self.needed(len(sequence.tokens)) - len(shared)
        idle = sum(1 for block in shared if not self._references[block])
        if self.available - idle - reserve < missing:
            return False
        for block in shared:
            self._findable.pop(block, None)
            self._references[block] += 1
        sequence.blocks = shared + [self._take() for _ in range(missing)]
        sequence.computed = sequence.cached = len(shared) * self.block_size
        sequence.recorded = len(shared)
        self._promise(sequence)
        return True

    def could(self, sequence: Sequence, *, after: Iterable[Sequence], reserve: int = 0) -> bool:
        """Whether `allocate` is sure to succeed once the sequences ``after`` are freed."""
        owned = Counter(block for other in after for block in other.blocks)
        freed = sum(1 for block, count in owned.items() if count == self._references[block])
        return self.available + freed - reserve >= self.needed(len(sequence.tokens))

    def awaits(self, sequence: Sequence) -> bool:
        """Whether others are computing at least half of what a sequence would have to compute."""
        if not self.prefix_cache or not sequence.takes_cached:
            return False
        begin = len(self._match(sequence))
        end, most = begin, (len(sequence.tokens) - 1) // self.block_size
        while end < most and self._digest(sequence, end) in self._promised:
            end += 1
        coming = (end - begin) * self.block_size
        return coming > 0 and 2 * coming >= len(sequence.tokens) - begin * self.block_size

    def grow(self, sequence: Sequence, *, ahead: int = 0) -> bool:
        """Make sure there is a place for every token; False if a block for it is not there.

        What could be had is kept. ``ahead``: for so many more tokens.
        """
        while not self.covers(sequence, ahead=ahead):
            if not self.available:
                return False
            sequence.blocks.append(self._take())
        return True

    def covers(self, sequence: Sequence, *, ahead: int = 0) -> bool:
        """Whether there is a place for every token, and for so many more."""
        return len(sequence.blocks) * self.block_size >= len(sequence.tokens) + ahead

    def record(self, sequence: Sequence) -> None:
        """Make the sequence's blocks that are full and computed findable for others."""
        full = sequence.computed // self.block_size
        if not self.prefix_cache or sequence.recorded >= full:
            return
        for index in range(sequence.recorded, full):
            digest = self._digest(sequence, index)
            block = sequence.blocks[index]
            if digest not in self._by_digest:  # else: an equal block was faster, ours stays private
                self._by_digest[digest] = block
                self._digest_of[block] = digest
            self._take_back(digest, sequence)
        sequence.recorded = full

    def free(self, sequence: Sequence) -> None:
        """Take all blocks back, the tail first, so that it is evicted before the prefix."""
        for digest in sequence.digests[sequence.recorded :]:
            self._take_back(digest, sequence)
        for block in reversed(sequence.blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._digest_of:
                self._findable[block] = None
            else:
                self._blank.append(block)
        sequence.blocks = []
        sequence.computed = sequence.recorded = 0

    def _take(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._findable.popitem(last=False)
            del self._by_digest[self._digest_of.pop(block)]
        self._references[block] = 1
        return block

    def _promise(self, sequence: Sequence) -> None:
        if not self.prefix_cache:
            return
        for index in range(sequence.recorded, len(sequence.tokens) // self.block_size):
            digest = self._digest(sequence, index)
            if digest not in self._by_digest:
                self._promised.setdefault(digest, sequence.request)

    def _take_back(self, digest: bytes, sequence: Sequence) -> None:
        """The sequence did what it promised, or will not."""
        if self._promised.get(digest) == sequence.request:
            del self._promised[digest]

    def _match(self, sequence: Sequence) -> list[int]:
        """Blocks of the longest computed prefix."""
        found: list[int] = []
        if not self.prefix_cache or not sequence.takes_cached:
            return found
        for index in range((len(sequence.tokens) - 1) // self.block_size):
            block = self._by_digest.get(self._digest(sequence, index))
            if block is None:
                break
            found.append(block)
        return found

    def _digest(self, sequence: Sequence, index: int) -> bytes:
        """Digest of a full block; a sequence remembers those of its blocks."""
        digests = sequence.digests
        while len(digests) <= index:
            root = (sequence.salt or "").encode()
            parent = digests[-1] if digests else blake2b(root, digest_size=16).digest()
            start = len(digests) * self.block_size
            tokens = array("q", sequence.tokens[start : start + self.block_size])
            digests.append(blake2b(tokens.tobytes(), key=parent, digest_size=16).digest())
        return digests[index]

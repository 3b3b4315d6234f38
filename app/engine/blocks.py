"""Who owns which block of the KV cache: references, and computed prefixes that others can reuse.

Pure bookkeeping over block numbers; the tensors are in ``app.engine.cache``. Paged blocks are from
PagedAttention (arXiv:2309.06180). A full, computed block is found again by a chained hash: the
digest of its parent block and its own tokens, with the sequence's salt at the root, so a block is
shared only between sequences that are equal from position 0 to the block's end.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
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
        self._chains: dict[str, tuple[int, bytes]] = {}  # blocks hashed so far, last digest

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
        shared, digest = self._match(sequence)
        missing = self.needed(len(sequence.tokens)) - len(shared)
        idle = sum(1 for block in shared if not self._references[block])
        if self.available - idle - reserve < missing:
            return False
        for block in shared:
            self._findable.pop(block, None)
            self._references[block] += 1
        sequence.blocks = shared + [self._take() for _ in range(missing)]
        sequence.computed = sequence.cached = len(shared) * self.block_size
        self._chains[sequence.request] = (len(shared), digest)
        return True

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
        done, digest = self._chains[sequence.request]
        if not self.prefix_cache or done >= full:
            return
        for index in range(done, full):
            digest = self._chain(digest, sequence, index)
            block = sequence.blocks[index]
            if digest not in self._by_digest:  # else: an equal block was faster, ours stays private
                self._by_digest[digest] = block
                self._digest_of[block] = digest
        self._chains[sequence.request] = (full, digest)

    def free(self, sequence: Sequence) -> None:
        """Take all blocks back, the tail first, so that it is evicted before the prefix."""
        for block in reversed(sequence.blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._digest_of:
                self._findable[block] = None
            else:
                self._blank.append(block)
        sequence.blocks = []
        sequence.computed = 0
        self._chains.pop(sequence.request, None)

    def _take(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._findable.popitem(last=False)
            del self._by_digest[self._digest_of.pop(block)]
        self._references[block] = 1
        return block

    def _match(self, sequence: Sequence) -> tuple[list[int], bytes]:
        """Blocks of the longest computed prefix, and the digest of the last of them."""
        digest = blake2b((sequence.salt or "").encode(), digest_size=16).digest()
        found: list[int] = []
        if not self.prefix_cache or not sequence.takes_cached:
            return found, digest
        for index in range((len(sequence.tokens) - 1) // self.block_size):
            following = self._chain(digest, sequence, index)
            block = self._by_digest.get(following)
            if block is None:
                break
            found.append(block)
            digest = following
        return found, digest

    def _chain(self, parent: bytes, sequence: Sequence, index: int) -> bytes:
        start = index * self.block_size
        tokens = array("q", sequence.tokens[start : start + self.block_size])
        return blake2b(tokens.tobytes(), key=parent, digest_size=16).digest()

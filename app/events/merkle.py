"""Merkle trees over leaf hashes, and the chain of seals. Pure.

The tree is RFC 6962's (§2.1): a leaf is ``SHA-256(0x00 ‖ entry)``, a node
``SHA-256(0x01 ‖ left ‖ right)``, and the left part of ``n`` entries is the largest power of two
below ``n``. An entry here is an event's leaf hash (`app.events.leaf`).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

__all__ = ["EMPTY", "GENESIS", "Merkle", "chain", "merkle_root"]

EMPTY = sha256(b"").digest()
"""Root of a tree without entries."""

GENESIS = bytes(32)
"""What the first seal names as the one before it."""


class Merkle:
    """A tree that grows entry by entry and keeps only the roots of its full subtrees."""

    __slots__ = ("_size", "_stack")

    def __init__(self) -> None:
        self._size = 0
        self._stack: list[bytes] = []

    def add(self, entry: bytes) -> None:
        """Append an entry: amortised one node, O(log n) memory."""
        node = sha256(b"\0" + entry).digest()
        size = self._size
        while size & 1:  # as many trailing ones, as many equal-sized neighbours to join
            node = sha256(b"\1" + self._stack.pop() + node).digest()
            size >>= 1
        self._stack.append(node)
        self._size += 1

    def root(self) -> bytes:
        """Root over the entries so far (32 bytes)."""
        if not self._stack:
            return EMPTY
        node = self._stack[-1]
        for left in reversed(self._stack[:-1]):
            node = sha256(b"\1" + left + node).digest()
        return node


def merkle_root(entries: Iterable[bytes]) -> bytes:
    """Root over entries (32 bytes)."""
    tree = Merkle()
    for entry in entries:
        tree.add(entry)
    return tree.root()


def chain(previous: bytes, first: int, last: int, merkle: bytes) -> bytes:
    """Root of a seal: it covers its range, its own tree, and every seal before it.

    Args:
        previous: Root of the seal before, or `GENESIS`.
        first: First seq of the range.
        last: Last seq of the range.
        merkle: Root of the tree over the range's leaves.

    """
    span = first.to_bytes(8, "big") + last.to_bytes(8, "big")
    return sha256(b"\2" + previous + span + merkle).digest()

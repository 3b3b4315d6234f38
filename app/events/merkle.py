"""Merkle trees over leaf hashes, and the chain of seals. Pure.

The tree is RFC 6962's (§2.1): a leaf is ``SHA-256(0x00 ‖ entry)``, a node
``SHA-256(0x01 ‖ left ‖ right)``, and the left part of ``n`` entries is the largest power of two
below ``n``. An entry here is an event's leaf hash (`app.events.leaf`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

__all__ = ["EMPTY", "GENESIS", "Merkle", "chain", "merkle_root"]

EMPTY = sha256(b"").digest()
"""Root of a tree without entries."""

GENESIS = bytes(32)
"""What the first seal names as the one before it."""


class Merkle:
    """A tree that grows entry by entry and keeps only the roots of its full subtrees."""

    __slots__ = ("_full",)

    def __init__(self) -> None:
        self._full: list[bytes | None] = []  # at i: root of the full subtree of 2**i entries

    def extend(self, entries: Sequence[bytes]) -> None:
        """Append entries: one node each, level by level; O(log n) memory is kept."""
        nodes = [sha256(b"\0" + entry).digest() for entry in entries]
        level = 0
        while nodes:
            if level == len(self._full):
                self._full.append(None)
            left = self._full[level]
            if left is not None:
                nodes.insert(0, left)
            self._full[level] = nodes.pop() if len(nodes) & 1 else None
            pairs = zip(nodes[::2], nodes[1::2], strict=True)
            nodes = [sha256(b"\1" + left + right).digest() for left, right in pairs]
            level += 1

    def root(self) -> bytes:
        """Root over the entries so far (32 bytes)."""
        root: bytes | None = None
        for left in self._full:
            if left is not None:
                root = left if root is None else sha256(b"\1" + left + root).digest()
        return EMPTY if root is None else root


def merkle_root(entries: Iterable[bytes]) -> bytes:
    """Root over entries (32 bytes)."""
    tree = Merkle()
    tree.extend(list(entries))
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

"""Attention over the paged cache, behind an interface that other backends can fill.

The torch backend is the oracle. Its result for a token depends on that token's keys and values
alone: every product reduces a row in the same order whatever its neighbours are, and masked
positions add exact zeros at the end. So in bfloat16 on oneDNN a token computed in a prefill, in a
chunk of one, or in a decode batch of 64 comes out bit for bit the same (tested), and a request
that is recomputed after a preemption or a crash goes on as if nothing had happened.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import numpy as np
import torch

from app.engine.cache import KVCache

__all__ = ["AttentionBackend", "Span", "TorchAttention", "Writes"]

_MAX_GATHER = 1 << 16  # positions gathered at once: bounds memory with many long sequences
_ROWS = 128  # query tokens of a prefill at once: bounds the matrix of scores


class Span(NamedTuple):
    """``length`` consecutive tokens of one sequence, the first at position ``start``.

    ``blocks`` are the sequence's block numbers.
    """

    start: int
    length: int
    blocks: Seq[int]

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + self.length


class AttentionBackend(ABC):
    """Writes a step's keys and values and computes its attention."""

    @abstractmethod
    def plan(self, spans: Seq[Span], decodes: int) -> None:
        """Prepare a step: its tokens are those of ``spans``, in order.

        The first ``decodes`` spans have length 1 and come with their longest sequence first.
        """

    @abstractmethod
    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See ``models.base.Attend``."""


class Writes:
    """Where a step's keys and values go in the cache."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        shape = cache.shape
        self._slots = list(cache.data.view(shape.layers, -1, shape.head_dim).unbind())

    def plan(self, spans: Seq[Span]) -> None:
        """Prepare a step, as in ``AttentionBackend.plan``."""
        size, kv = self._cache.block_size, self._cache.shape.kv_heads
        blocks, offsets = [], []
        for span in spans:
            positions = np.arange(span.start, span.end)
            first = span.start // size
            table = np.asarray(span.blocks[first : -(-span.end // size)])
            blocks.append(table[positions // size - first])
            offsets.append(positions % size)
        block, offset = np.concatenate(blocks), np.concatenate(offsets)
        head = np.arange(kv)
        keys = ((block[:, None] * 2 * kv + head) * size + offset[:, None]).reshape(-1)
        device = self._cache.data.device
        self._keys = torch.from_numpy(keys).to(device)
        self._values = torch.from_numpy(keys + kv * size).to(device)

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store ``[N, kv_heads, head_dim]`` each."""
        slots, dim = self._slots[layer], self._cache.shape.head_dim
        slots.index_copy_(0, self._keys, k.reshape(-1, dim))
        slots.index_copy_(0, self._values, v.reshape(-1, dim))


class _Group(NamedTuple):
    """Query rows that are computed together.

    ``rows`` of the step; ``gather`` rows of the cache seen as ``[-1, block_size * head_dim]``,
    keys then values, each by (sequence, head, block); ``mask`` is added to the scores and
    ``[sequences, 1 or rows, positions]``.
    """

    rows: slice
    sequences: int
    length: int
    gather: torch.Tensor
    mask: torch.Tensor


class TorchAttention(AttentionBackend):
    """Gather blocks, multiply, softmax, multiply: four large operators a layer and group."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        shape = cache.shape
        self._kv, self._dim = shape.kv_heads, shape.head_dim
        self._queries = shape.heads // shape.kv_heads
        self._scale = shape.head_dim**-0.5
        self._device, self._dtype = cache.data.device, cache.data.dtype
        pages = cache.data.view(shape.layers, -1, cache.block_size * shape.head_dim)
        self._pages = list(pages.unbind())
        self._writes = Writes(cache)
        self._groups: list[_Group] = []

    # ------------------------------------------------------------------------------ plan

    def plan(self, spans: Seq[Span], decodes: int) -> None:
        """See ``AttentionBackend.plan``."""
        self._writes.plan(spans)
        self._groups = []
        at = 0
        while at < decodes:
            group = self._take(spans[at:decodes])
            self._groups.append(self._decode_group(at, group))
            at += len(group)
        for span in spans[decodes:]:
            for first in range(0, span.length, _ROWS):
                part = Span(span.start + first, min(_ROWS, span.length - first), span.blocks)
                self._groups.append(self._prefill_group(at + first, part))
            at += span.length

    def _take(self, spans: Seq[Span]) -> Seq[Span]:
        """As many as waste little: none shorter than half the first, bounded in total."""
        longest = spans[0].end
        count = 1
        while (
            count < len(spans)
            and spans[count].end * 2 >= longest
            and (count + 1) * longest <= _MAX_GATHER
        ):
            count += 1
        return spans[:count]

    def _decode_group(self, row: int, spans: Seq[Span]) -> _Group:
        size = self._cache.block_size
        pages = -(-spans[0].end // size)
        table = np.zeros((len(spans), pages), np.int64)
        for index, span in enumerate(spans):
            used = -(-span.end // size)
            table[index, :used] = span.blocks[:used]
        ends = torch.tensor([span.end for span in spans])
        hidden = torch.arange(pages * size) >= ends[:, None]
        return self._group(row, len(spans), len(spans), table, hidden[:, None])

    def _prefill_group(self, row: int, span: Span) -> _Group:
        pages = -(-span.end // self._cache.block_size)
        table = np.asarray(span.blocks[:pages])[None]
        last = torch.arange(span.start, span.end)
        hidden = torch.arange(pages * self._cache.block_size) > last[:, None]
        return self._group(row, span.length, 1, table, hidden[None])

    def _group(
        self,
        row: int,
        rows: int,
        sequences: int,
        table: np.ndarray[Any, Any],
        hidden: torch.Tensor,
    ) -> _Group:
        kv = self._kv
        keys = table[:, None, :] * 2 * kv + np.arange(kv)[:, None]
        gather = np.stack((keys, keys + kv)).reshape(-1)
        mask = torch.zeros(hidden.shape, dtype=self._dtype).masked_fill_(hidden, -torch.inf)
        return _Group(
            slice(row, row + rows),
            sequences,
            table.shape[1] * self._cache.block_size,
            self._index(gather),
            mask.to(self._device),
        )

    def _index(self, values: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)

    # ---------------------------------------------------------------------------- attend

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See ``models.base.Attend``."""
        self._writes.write(layer, k, v)
        pages = self._pages[layer]
        if len(self._groups) == 1:
            return self._mix(self._groups[0], pages, q)
        return torch.cat([self._mix(group, pages, q[group.rows]) for group in self._groups])

    def _mix(self, group: _Group, pages: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """Rows ``[n, heads, head_dim]`` of a group to ``[n, heads * head_dim]``."""
        kv, dim, queries, n = self._kv, self._dim, self._queries, group.sequences
        rows = q.shape[0] // n
        q = q * self._scale
        if rows > 1:  # (row, head, query) -> (head, row, query): a head's rows together
            q = q.view(rows, kv, queries, dim).transpose(0, 1)
        q = q.reshape(n * kv, rows * queries, dim)
        keys, values = pages.index_select(0, group.gather).view(2, n * kv, group.length, dim)
        scores = torch.bmm(q, keys.transpose(1, 2))
        # every query of a row has the same mask
        scores.view(n, kv, rows, queries, -1).add_(group.mask[:, None, :, None])
        out = torch.bmm(scores.softmax(-1), values)
        if rows > 1:
            out = out.view(kv, rows, queries, dim).transpose(0, 1)
        return out.reshape(n * rows, kv * queries * dim)

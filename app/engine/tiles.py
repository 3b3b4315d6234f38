"""Attention whose result for a token is the same, bit for bit, in every batch and every chunk.

Keys and values are cut into tiles of a fixed number of positions, counted from the sequence's
start. All products have one shape, the queries of one token and one head by one tile; only how many
of them stand in one call varies, and those numbers were tried (`invariant.sizes`). Sums over tiles
run from the first to the last; a masked position adds an exact zero. So neither the length of
others, nor the place in a batch, nor the cut of a prompt has a part in what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import numpy as np
import torch

from app.engine.attention import AttentionBackend, Span, Writes
from app.engine.cache import KVCache
from app.engine.models.invariant import cancelling, fill, padded, refusal, sizes

__all__ = ["TiledAttention"]

_TILE = 64  # positions, or a little more where the block size asks for it
_LANES = 16  # a tile is a multiple of it, so that no reduction has a rest
_ROWS = 128  # query tokens of a prefill at once: bounds the matrix of scores
_CALL = 128  # most products in one call


class _Decodes(NamedTuple):
    """The tiles of all sequences that need one token, sequence after sequence.

    ``keys`` and ``values`` are pages of the cache by (tile, head, page of the tile); ``owner`` is
    the sequence of each tile, ``table`` the tiles of each sequence (its first one again where it
    has no more), ``hidden`` is added to scores ``[tiles, positions]``.
    """

    sequences: int
    keys: torch.Tensor
    values: torch.Tensor
    owner: torch.Tensor
    table: torch.Tensor
    hidden: torch.Tensor


class _Prefill(NamedTuple):
    """Rows of one sequence. ``hidden`` is added to scores ``[tiles, rows, positions]``."""

    rows: slice
    tiles: int
    gather: torch.Tensor
    hidden: torch.Tensor


class TiledAttention(AttentionBackend):
    """See the module. On the CPU only.

    Raises:
        StartupError: This machine's products differ by their place in a call.

    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        shape, size = cache.shape, cache.block_size
        self._kv, self._dim = shape.kv_heads, shape.head_dim
        self._queries = shape.heads // shape.kv_heads
        self._scale = shape.head_dim**-0.5
        self._dtype = cache.data.dtype
        unit = math.lcm(size, _LANES)
        self._tile = unit * -(-_TILE // unit)
        self._per_tile = self._tile // size  # pages
        self._pages = list(cache.data.view(shape.layers, -1, size * shape.head_dim).unbind())
        self._writes = Writes(cache)
        self._decodes: _Decodes | None = None
        self._prefills: list[_Prefill] = []
        self._good = self._sizes()

    @torch.inference_mode()
    def _sizes(self) -> list[int]:
        """How many products may stand in one call: by tiles of their own and by a shared one."""
        m, dim, tile, dtype = self._queries, self._dim, self._tile, self._dtype
        q, k = cancelling(1, m, dim, dtype=dtype), cancelling(1, tile, dim, dtype=dtype, seed=1)
        p, v = cancelling(1, m, tile, dtype=dtype), cancelling(1, tile, dim, dtype=dtype, seed=2)

        def product(count: int) -> torch.Tensor:
            qs, ps = q.repeat(count, 1, 1), p.repeat(count, 1, 1)
            found = []
            for keys, values in (
                (k.repeat(count, 1, 1), v.repeat(count, 1, 1)),
                (k.expand(count, -1, -1), v.expand(count, -1, -1)),
            ):
                scores, mixed = torch.bmm(qs, keys.transpose(1, 2)), torch.bmm(ps, values)
                found += [scores.flatten(1), mixed.flatten(1)]
            same = torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
            return torch.cat(found if same else [torch.full_like(f, torch.nan) for f in found], 1)

        good = sizes(product, range(1, _CALL + 1))
        if not good:
            raise refusal("products of attention differ by their place in a call")
        return good

    # ------------------------------------------------------------------------------ plan

    def plan(self, spans: Seq[Span], decodes: int) -> None:
        """See ``AttentionBackend.plan``."""
        self._writes.plan(spans)
        self._decodes = self._plan_decodes(spans[:decodes]) if decodes else None
        self._prefills = []
        at = decodes
        for span in spans[decodes:]:
            for first in range(0, span.length, _ROWS):
                part = Span(span.start + first, min(_ROWS, span.length - first), span.blocks)
                self._prefills.append(self._plan_prefill(at + first, part))
            at += span.length

    def _plan_decodes(self, spans: Seq[Span]) -> _Decodes:
        counts = np.array([-(-span.end // self._tile) for span in spans])
        firsts = np.cumsum(counts) - counts
        owner = np.repeat(np.arange(len(spans)), counts)
        table = firsts[:, None] + np.arange(counts.max())
        table = np.where(np.arange(counts.max()) < counts[:, None], table, firsts[:, None])
        pages = np.concatenate([self._span_pages(span) for span in spans])
        ends = np.array([span.end for span in spans])
        begins = (np.arange(len(owner)) - firsts[owner]) * self._tile
        keys = (pages[:, None] * 2 * self._kv + np.arange(self._kv)[:, None]).reshape(-1)
        return _Decodes(
            len(spans),
            torch.from_numpy(keys),
            torch.from_numpy(keys + self._kv),
            torch.from_numpy(owner),
            torch.from_numpy(table),
            _hidden(begins[:, None] + np.arange(self._tile) >= ends[owner][:, None]),
        )

    def _span_pages(self, span: Span) -> np.ndarray[Any, Any]:
        """Blocks of a sequence by (tile, page of the tile); its first one behind its end."""
        used = -(-span.end // self._cache.block_size)
        table = np.full(-(-span.end // self._tile) * self._per_tile, span.blocks[0], np.int64)
        table[:used] = span.blocks[:used]
        return table.reshape(-1, self._per_tile)

    def _plan_prefill(self, row: int, span: Span) -> _Prefill:
        pages = self._span_pages(span)
        keys = pages.reshape(-1) * 2 * self._kv + np.arange(self._kv)[:, None]
        gather = np.stack((keys, keys + self._kv)).reshape(-1)
        position = np.arange(len(pages) * self._tile).reshape(-1, 1, self._tile)
        hidden = position > np.arange(span.start, span.end)[:, None]
        return _Prefill(
            slice(row, row + span.length), len(pages), torch.from_numpy(gather), _hidden(hidden)
        )

    # ---------------------------------------------------------------------------- attend

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See ``models.base.Attend``."""
        self._writes.write(layer, k, v)
        q = (q * self._scale).view(-1, self._kv, self._queries, self._dim)
        pages = self._pages[layer]
        parts = []
        if self._decodes is not None:
            parts.append(self._decode(self._decodes, pages, q[: self._decodes.sequences]))
        parts += [self._prefill(part, pages, q[part.rows]) for part in self._prefills]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, plan: _Decodes, pages: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """Queries ``[n, kv, m, dim]`` of one token each to ``[n, heads * dim]``."""
        kv, m, dim, tile = self._kv, self._queries, self._dim, self._tile
        rows = q.index_select(0, plan.owner).view(-1, m, dim)
        scores = self._multiply(rows, pages, plan.keys, transposed=True).float()
        scores = scores.view(-1, kv, m, tile).add_(plan.hidden[:, None, None])
        tops = scores.amax(-1)
        most = tops[plan.table].amax(1)
        weights = scores.sub_(most.index_select(0, plan.owner)[..., None]).exp_()
        rows = weights.to(self._dtype).view(-1, m, tile)
        mixed = self._multiply(rows, pages, plan.values, transposed=False).float()
        total = most.new_zeros(most.shape).index_add_(0, plan.owner, weights.sum(-1))
        out = most.new_zeros(*most.shape, dim)
        out.index_add_(0, plan.owner, mixed.view(-1, kv, m, dim))
        return out.div_(total[..., None]).to(self._dtype).view(plan.sequences, -1)

    def _multiply(
        self, rows: torch.Tensor, pages: torch.Tensor, index: torch.Tensor, *, transposed: bool
    ) -> torch.Tensor:
        """Products of ``rows`` ``[n, m, .]``, each with its tile, in calls of a good size."""
        found = []
        for first in range(0, len(rows), _CALL):
            part = rows[first : first + _CALL]
            at = index[first * self._per_tile : (first + _CALL) * self._per_tile]
            tiles = pages.index_select(0, at).view(-1, self._tile, self._dim)
            count = padded(self._good, len(part))
            tiles = fill(tiles, count)
            product = torch.bmm(fill(part, count), tiles.transpose(1, 2) if transposed else tiles)
            found.append(product[: len(part)])
        return found[0] if len(found) == 1 else torch.cat(found)

    def _prefill(self, plan: _Prefill, pages: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """Queries ``[n, kv, m, dim]`` of one sequence to ``[n, heads * dim]``."""
        kv, m, dim, tile, n = self._kv, self._queries, self._dim, self._tile, len(q)
        count = padded(self._good, n)
        keys, values = pages.index_select(0, plan.gather).view(2, kv, plan.tiles, tile, dim)
        heads = [fill(q[:, head], count) for head in range(kv)]
        scores = torch.empty(plan.tiles, kv, n, m, tile)
        for index in range(plan.tiles):
            for head, rows in enumerate(heads):
                shared = keys[head, index].expand(count, -1, -1).transpose(1, 2)
                scores[index, head] = torch.bmm(rows, shared)[:n]
        scores.add_(plan.hidden[:, None, :, None])
        most = scores.amax((0, -1))
        weights = scores.sub_(most[..., None]).exp_()
        sums, rounded = weights.sum(-1), weights.to(self._dtype)
        total, out = torch.zeros(kv, n, m), torch.zeros(kv, n, m, dim)
        for index in range(plan.tiles):
            total += sums[index]
            for head in range(kv):
                rows = fill(rounded[index, head], count)
                out[head] += torch.bmm(rows, values[head, index].expand(count, -1, -1))[:n]
        out = out.div_(total[..., None]).to(self._dtype)
        return out.transpose(0, 1).reshape(n, -1)


def _hidden(hidden: np.ndarray[Any, Any]) -> torch.Tensor:
    mask = torch.from_numpy(hidden)
    return torch.zeros(mask.shape).masked_fill_(mask, -torch.inf)

"""A trial of a whole model, once at start: is a token's row the same however the work is cut?"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from app.engine.attention import AttentionBackend, Span
from app.engine.cache import KVCache
from app.engine.models.base import Model
from app.engine.models.invariant import refusal

__all__ = ["prove"]

_LENGTH = 70  # tokens: more than a tile of attention
_OTHERS = (9, 1, 5)  # lengths of sequences beside it


@torch.inference_mode()
def prove(model: Model, attention: AttentionBackend, cache: KVCache) -> None:
    """Compute a sequence whole, in chunks, and token by token beside others.

    Leaves the cache as it was: empty.

    Raises:
        StartupError: The rows differ.

    """
    length = min(_LENGTH, cache.shape.context, cache.blocks * cache.block_size)
    tokens = torch.randint(cache.shape.vocab, (length,), generator=torch.Generator().manual_seed(0))
    whole = _run(model, attention, cache, tokens, [(0, length)])
    third = max(1, length // 3)
    chunks = _run(model, attention, cache, tokens, [(0, 1), (1, third), (third, length)])
    tail = length - min(2, length - 1)
    steps = [(0, tail), *((at, at + 1) for at in range(tail, length))]
    crowded = _run(model, attention, cache, tokens, steps, others=_OTHERS)
    used = sum(-(-count // cache.block_size) for count in (length, *_OTHERS))
    cache.data[:, :used].zero_()
    if not (torch.equal(whole, chunks) and torch.equal(whole, crowded)):
        raise refusal("the model's rows depend on what is computed beside them")


def _run(
    model: Model,
    attention: AttentionBackend,
    cache: KVCache,
    tokens: torch.Tensor,
    cuts: Seq[tuple[int, int]],
    others: Seq[int] = (),
) -> torch.Tensor:
    """Logits of all tokens, computed from cut to cut; the others are there in each step."""
    need = -(-len(tokens) // cache.block_size)
    rows = []
    for start, end in cuts:
        spans = [Span(start, end - start, list(range(need)))]
        first = need
        for count in others:
            blocks = -(-count // cache.block_size)
            if first + blocks > cache.blocks:
                break
            spans.append(Span(0, count, list(range(first, first + blocks))))
            first += blocks
        spans.sort(key=lambda s: (s.length > 1, -s.end))
        ids: list[torch.Tensor] = []
        positions: list[torch.Tensor] = []
        at, mine = 0, slice(0)
        for span in spans:
            ids.append(tokens[span.start : span.end])
            positions.append(torch.arange(span.start, span.end))
            if span.blocks[0] == 0:
                mine = slice(at, at + span.length)
            at += span.length
        attention.plan(spans, sum(span.length == 1 for span in spans))
        logits = model.forward(torch.cat(ids), torch.cat(positions), attention.attend, None)
        rows.append(logits[mine])
    return torch.cat(rows)

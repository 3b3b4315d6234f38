"""Log probabilities of tokens: the log-softmax of a model's logits as they are."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from app.engine.sampling import TokenLogprobs

__all__ = ["logprobs"]

_DIGITS = 6  # behind the point: what float32 can tell apart
_ROWS = 32  # at a time, so that float64 sums over long prompts stay small


def logprobs(logits: torch.Tensor, tokens: Seq[int], tops: Seq[int]) -> list[TokenLogprobs]:
    """Log probabilities at some places.

    Sums run along the vocabulary one after the other in float64, so a row's result does not
    depend on the others.

    Args:
        logits: ``[R, vocab]``, any float type.
        tokens: The token that is at each place.
        tops: How many alternatives are wanted there.

    """
    found: list[TokenLogprobs] = []
    for start in range(0, len(tokens), _ROWS):
        part = slice(start, start + _ROWS)
        found += _some(logits[part].float(), tokens[part], tops[part])
    return found


def _some(scores: torch.Tensor, tokens: Seq[int], tops: Seq[int]) -> list[TokenLogprobs]:
    most = scores.amax(-1, keepdim=True)
    sums = (scores - most).exp().cumsum(-1, dtype=torch.float64)[:, -1:]
    norm = most.double() + sums.log()
    chosen = scores.gather(1, torch.tensor(tokens, device=scores.device)[:, None]).double() - norm
    return [
        TokenLogprobs(logprob=round(value, _DIGITS), top=_top(scores[row], norm[row], tops[row]))
        for row, value in enumerate(chosen[:, 0].tolist())
    ]


def _top(scores: torch.Tensor, norm: torch.Tensor, count: int) -> list[tuple[int, float]]:
    """The likeliest tokens in order; of equals the smaller ids, however a sort breaks ties."""
    if not count:
        return []
    least = scores.topk(min(count, len(scores))).values[-1]
    ids = (scores >= least).nonzero()[:, 0]
    values = scores[ids]
    order = values.sort(descending=True, stable=True).indices[:count]
    found = zip(ids[order].tolist(), (values[order].double() - norm).tolist(), strict=True)
    return [(token, round(value, _DIGITS)) for token, value in found]

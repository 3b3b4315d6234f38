"""Logits to tokens, for a whole batch at once.

Order: penalties, bias, hooks (plugins, masks), ``min_tokens``, temperature, then top-k, top-p (of
what top-k leaves) and min-p (relative to the most probable token); a token must pass all three.
Tokens of equal logits stay or go together, so the set that remains does not depend on how a sort
breaks ties.

A draw is the inverse of the cumulative distribution in order of token ids, at a number that is a
function of (seed, position) alone. Sums run along the vocabulary one after the other in float64.
So neither batch composition, nor preemption, nor a restart changes what a given row draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq

import numpy as np
import torch

from app.engine.masks import Bits, has, restrict
from app.engine.philox import uniform
from app.engine.sampling import SamplingParams
from app.engine.sequence import Sequence

__all__ = ["Hook", "Sampler", "too_short"]

Hook = Callable[[torch.Tensor], None]
"""Changes the float32 scores ``[vocab]`` of a row in place."""

_CANDIDATES = (256, 4096)  # tokens sorted at first for top-k and top-p; all if they don't suffice
_COLDEST = 1e-30  # temperature; below 1e-38 float32 has hardly any number, and 0 / 0 is none
_ROWS = 8  # at a time on CPUs: what is made of them on the way then stays in the cache


class Sampler:
    """Draws the next token of each sequence.

    Args:
        eos: Ids that end a generation: forbidden until ``min_tokens`` are there.

    """

    def __init__(self, eos: Seq[int]) -> None:
        self._eos = tuple(eos)
        self._counts: dict[str, _Counts] = {}

    def sample(
        self,
        logits: torch.Tensor,
        sequences: Seq[Sequence],
        hooks: Mapping[int, Hook] | None = None,
        masks: Mapping[int, Bits] | None = None,
    ) -> list[int]:
        """Token ids for rows ``[R, vocab]`` of logits, any float type, left as they are.

        Args:
            logits: One row for each sequence.
            sequences: Whose next tokens are drawn.
            hooks: Called for some rows, by their indices.
            masks: The tokens that some rows choose from.

        """
        hooks, masks = hooks or {}, masks or {}
        rows = [i for i, s in enumerate(sequences) if i in hooks or not self._plain(s)]
        if rows and len(rows) == len(sequences):
            return self._general(logits.to(torch.float32, copy=True), sequences, hooks, masks)
        tokens = _greedy(logits)
        _choose(tokens, logits, {row: masks[row] for row in masks.keys() - set(rows)})
        if not rows:
            return tokens
        chosen = logits[torch.tensor(rows, device=logits.device)].float()
        hooks = {at: hooks[row] for at, row in enumerate(rows) if row in hooks}
        masks = {at: masks[row] for at, row in enumerate(rows) if row in masks}
        drawn = self._general(chosen, [sequences[i] for i in rows], hooks, masks)
        for row, token in zip(rows, drawn, strict=True):
            tokens[row] = token
        return tokens

    def release(self, request: str) -> None:
        """Forget what was counted for a request."""
        self._counts.pop(request, None)

    def _plain(self, sequence: Sequence) -> bool:
        p = sequence.params
        changed = _penalized(p) or p.logit_bias or too_short(sequence)
        return p.temperature == 0 and not changed

    def _general(
        self,
        scores: torch.Tensor,
        sequences: Seq[Sequence],
        hooks: Mapping[int, Hook],
        masks: Mapping[int, Bits],
    ) -> list[int]:
        self._penalize(scores, sequences)
        _bias(scores, sequences)
        for row, hook in hooks.items():
            hook(scores[row])
        restrict(scores, masks)
        self._forbid(scores, sequences)
        drawn = [i for i, s in enumerate(sequences) if s.params.temperature > 0]
        if not drawn:
            return _greedy(scores)
        numbers = uniform(
            [sequences[i].params.seed or 0 for i in drawn],
            [len(sequences[i].tokens) for i in drawn],
        )
        params = [sequences[i].params for i in drawn]
        if len(drawn) == len(sequences):
            return _draw(scores, params, numbers)
        tokens = _greedy(scores)
        part = scores[torch.tensor(drawn, device=scores.device)]
        for row, token in zip(drawn, _draw(part, params, numbers), strict=True):
            tokens[row] = token
        return tokens

    # ------------------------------------------------------------------------- penalties

    def _penalize(self, scores: torch.Tensor, sequences: Seq[Sequence]) -> None:
        found = [(i, s, self._count(s)) for i, s in enumerate(sequences) if _penalized(s.params)]
        if not found:
            return
        sizes = [c.size for _, _, c in found]

        def spread(values: list[float]) -> torch.Tensor:
            return torch.from_numpy(np.repeat(np.array(values), sizes)).to(scores)

        device = scores.device
        row = torch.from_numpy(np.repeat([i for i, _, _ in found], sizes)).to(device)
        ids = torch.from_numpy(np.concatenate([c.ids[: c.size] for _, _, c in found])).to(device)
        count = np.concatenate([c.output[: c.size] for _, _, c in found])
        counts = torch.from_numpy(count).to(scores)
        repetition = spread([s.params.repetition_penalty for _, s, _ in found])
        values = scores[row, ids]
        values = torch.where(values > 0, values / repetition, values * repetition)
        values -= spread([s.params.frequency_penalty for _, s, _ in found]) * counts
        values -= spread([s.params.presence_penalty for _, s, _ in found]) * (counts > 0)
        scores[row, ids] = values

    def _count(self, sequence: Sequence) -> _Counts:
        counts = self._counts.get(sequence.request)
        if counts is None or counts.seen > len(sequence.tokens):
            counts = self._counts[sequence.request] = _Counts()
        counts.advance(sequence)
        return counts

    def _forbid(self, scores: torch.Tensor, sequences: Seq[Sequence]) -> None:
        """No token that ends it too early, unless there is no other."""
        for row, sequence in zip(scores, sequences, strict=True):
            if too_short(sequence) and sequence.params.structured is None:
                ends = {*self._eos, *sequence.params.stop_token_ids}
                ends = {i for i in ends if i < len(row)}
                at = torch.tensor(list(ends), dtype=torch.int64, device=row.device)
                kept = row[at]
                row[at] = -torch.inf
                if row.max() == -torch.inf:
                    row[at] = kept


class _Counts:
    """Distinct tokens of a sequence, and how often each is in its output."""

    def __init__(self) -> None:
        self.seen = 0  # tokens of the sequence that are counted
        self.size = 0
        self.ids = np.zeros(64, np.int64)
        self.output = np.zeros(64, np.int32)
        self._index: dict[int, int] = {}

    def advance(self, sequence: Sequence) -> None:
        """Count what was added to the sequence since the last call."""
        for position in range(self.seen, len(sequence.tokens)):
            token = sequence.tokens[position]
            at = self._index.get(token)
            if at is None:
                at = self._index[token] = self.size
                if at == len(self.ids):
                    self.ids = np.resize(self.ids, 2 * at)
                    self.output = np.resize(self.output, 2 * at)
                self.ids[at], self.output[at] = token, 0
                self.size += 1
            self.output[at] += position >= sequence.prompt_len
        self.seen = len(sequence.tokens)


def _penalized(p: SamplingParams) -> bool:
    return p.repetition_penalty != 1.0 or p.presence_penalty != 0.0 or p.frequency_penalty != 0.0


def _bias(scores: torch.Tensor, sequences: Seq[Sequence]) -> None:
    rows: list[int] = []
    ids: list[int] = []
    values: list[float] = []
    for index, sequence in enumerate(sequences):
        bias = sequence.params.logit_bias
        rows += [index] * len(bias)
        ids += bias.keys()
        values += bias.values()
    if rows:
        at = (torch.tensor(rows, device=scores.device), torch.tensor(ids, device=scores.device))
        scores[at] += torch.tensor(values, device=scores.device, dtype=scores.dtype)


def _choose(tokens: list[int], logits: torch.Tensor, masks: Mapping[int, Bits]) -> None:
    """Replace the greedy tokens that masks forbid by the best that they allow.

    The best of all that is allowed is the best allowed; often that is so, and nothing is to do.
    """
    wrong = {row: bits for row, bits in masks.items() if not has(bits, tokens[row])}
    if wrong:
        part = logits[torch.tensor(list(wrong), device=logits.device)].float()
        restrict(part, dict(enumerate(wrong.values())))
        for row, token in zip(wrong, _greedy(part), strict=True):
            tokens[row] = token


def too_short(sequence: Sequence) -> bool:
    """Whether it must not end yet."""
    return len(sequence.tokens) - sequence.prompt_len < sequence.params.min_tokens


def _greedy(scores: torch.Tensor) -> list[int]:
    """The first of the most probable tokens of each row."""
    if scores.device.type == "cpu":  # numpy finds it several times faster than torch
        found: list[int] = scores.float().numpy().argmax(-1).tolist()
        return found
    tokens: list[int] = scores.max(-1).indices.tolist()
    return tokens


def _draw(
    scores: torch.Tensor,
    params: Seq[SamplingParams],
    numbers: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> list[int]:
    """Draw from float32 ``[R, vocab]``, which is overwritten. ``numbers``: in [0, 1), ``[R]``."""
    rows = _ROWS if scores.device.type == "cpu" else len(params)
    tokens: list[int] = []
    for first in range(0, len(params), rows):
        part = slice(first, first + rows)
        tokens += _draw_some(scores[part], params[part], numbers[part])
    return tokens


def _draw_some(
    scores: torch.Tensor,
    params: Seq[SamplingParams],
    numbers: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> list[int]:
    scores -= scores.amax(-1, keepdim=True)  # before the division, which may lead to infinity
    scores /= _column(scores, [max(p.temperature, _COLDEST) for p in params])
    weights = scores.softmax(-1)  # torch's exp is many times slower where it underflows
    reached = weights.cumsum(-1, dtype=torch.float64)
    floors = _floors(scores, weights, reached[:, -1:], params)
    if floors is not None:
        weights *= scores >= floors
        reached = weights.cumsum(-1, dtype=torch.float64)
    total = reached[:, -1:]
    at = torch.from_numpy(numbers).to(scores.device)[:, None] * total
    at = torch.minimum(at, torch.nextafter(total, torch.zeros_like(total)))
    tokens: list[int] = torch.searchsorted(reached, at, right=True)[:, 0].tolist()
    return tokens


def _column(scores: torch.Tensor, values: list[float]) -> torch.Tensor:
    return torch.tensor(values, device=scores.device, dtype=scores.dtype)[:, None]


def _floors(
    scores: torch.Tensor, weights: torch.Tensor, total: torch.Tensor, params: Seq[SamplingParams]
) -> torch.Tensor | None:
    """Least score a token may have, ``[R, 1]``; scores are relative to the largest."""
    floors = None
    if any(p.min_p > 0 for p in params):
        floors = _column(scores, [math.log(p.min_p) if p.min_p else -math.inf for p in params])
    rows = [i for i, p in enumerate(params) if p.top_k > 0 or p.top_p < 1.0]
    if not rows:
        return floors
    if floors is None:
        floors = _column(scores, [-math.inf] * len(params))
    index = torch.tensor(rows, device=scores.device)
    cut = _truncate(scores[index], weights[index], total[index], [params[i] for i in rows])
    floors[index] = torch.maximum(floors[index], cut)
    return floors


def _truncate(
    scores: torch.Tensor, weights: torch.Tensor, total: torch.Tensor, params: Seq[SamplingParams]
) -> torch.Tensor:
    """Score of the last token that top-k and top-p let pass, ``[R, 1]``."""
    vocab = scores.shape[1]
    limits = [p.top_k if 0 < p.top_k < vocab else vocab for p in params]
    k = torch.tensor(limits, device=scores.device)[:, None]
    top_p = _column(total, [p.top_p for p in params])
    floor = torch.empty_like(scores[:, :1])
    rest = torch.arange(len(params), device=scores.device)
    for width in (*(w for w in _CANDIDATES if w < vocab), vocab):
        ordered, order = scores[rest].topk(width)
        likely = weights[rest].gather(1, order)
        floor[rest], found = _within(ordered, likely, k[rest], top_p[rest], total[rest], vocab)
        rest = rest[~found]
        if not len(rest):
            break
    return floor


def _within(
    ordered: torch.Tensor,
    likely: torch.Tensor,
    k: torch.Tensor,
    top_p: torch.Tensor,
    total: torch.Tensor,
    vocab: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Floors from the largest scores in descending order, and whether these sufficed.

    ``likely`` are their weights, of which all have ``total``.
    """
    width = ordered.shape[1]
    last = ordered.gather(1, (k - 1).clamp(max=width - 1))
    # with ties of the k-th: they stay or go together, so their end must be in sight
    sees_k = (k >= vocab) | (ordered[:, -1:] < last) | (last == -torch.inf)
    reached = likely.cumsum(-1, dtype=torch.float64)
    kept = (ordered >= last).sum(-1, keepdim=True)
    total = torch.where(k >= vocab, total, reached.gather(1, kept - 1))
    over = reached >= top_p * total
    nucleus = ordered.gather(1, over.int().argmax(-1, keepdim=True))
    nucleus = torch.where(top_p < 1.0, nucleus, -torch.inf)
    sees_p = (top_p >= 1.0) | over.any(-1, keepdim=True)
    last = torch.where(k >= vocab, -torch.inf, last)
    found = (sees_k & sees_p)[:, 0] | torch.tensor(width == vocab, device=ordered.device)
    return torch.maximum(last, nucleus), found

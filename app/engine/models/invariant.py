"""Products whose rows come out alike, bit for bit, whatever other rows there are.

Libraries choose kernels by the number of rows, and kernels add in different orders. Instead of
trusting one, a product is tried here, once, with every number of rows that it may be called with
later: the same row in all places, with sums that cancel, so that another order of addition shows.
Those numbers for which it came out alike everywhere are *sizes*; a call with another number is
filled up to the next size. The order of addition depends on shapes, never on values, so what holds
for one row holds for all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from functools import partial

import torch
from torch.nn import functional as F

from app.engine.models.linear import Linear, onednn
from app.errors import StartupError

__all__ = ["InvariantLinears", "cancelling", "padded", "refusal", "sizes"]

_ROWS = 64
"""Most rows in one product, but for `_MANY`; more rows are cut."""
_MANY = 256
"""Rows of long prompts, for which a weight is read once instead of four times."""
_COUNTS = (1, 2, 3, 4, 5, 6, 7, *range(8, _ROWS + 1, 8))

Product = Callable[[torch.Tensor], torch.Tensor]


def refusal(what: str) -> StartupError:
    """The error for a machine that cannot keep the promise."""
    return StartupError(
        f"engine.deterministic cannot be kept on this machine: {what}",
        hint="Try engine.threads = 1 or another engine.dtype, or set it to false.",
    )


def cancelling(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Numbers of all magnitudes and both signs, so that sums of them show their order."""
    random = torch.Generator().manual_seed(seed)
    size = torch.randn(*shape, generator=random).mul_(3).exp_()
    return torch.randn(*shape, generator=random).mul_(size).to(dtype)


def sizes(product: Callable[[int], torch.Tensor], counts: Iterable[int]) -> list[int]:
    """The counts with which every place gets the same result as with the largest count.

    Args:
        product: Computes that many equal things; the first dimension is the place.
        counts: Which to try.

    Returns:
        In ascending order; empty if places differ even with the largest.

    """
    ordered = sorted(counts)
    most = product(ordered[-1])
    if not bool((most == most[:1]).all()):
        return []
    return [n for n in ordered[:-1] if bool((product(n) == most[:1]).all())] + ordered[-1:]


def padded(good: Seq[int], count: int) -> int:
    """The least size that has room for ``count``."""
    return good[bisect_left(good, count)]


def fill(x: torch.Tensor, count: int) -> torch.Tensor:
    """Zeros behind ``x`` until there are ``count`` rows."""
    missing = count - x.shape[0]
    return torch.cat((x, x.new_zeros(missing, *x.shape[1:]))) if missing else x


class InvariantLinears:
    """Makes linear layers; each shape is tried once."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[bool, list[int]]] = {}

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """A layer for this weight.

        Raises:
            StartupError: No way to compute it has rows that are alike.

        """
        key = (tuple(weight.shape), bias is None, weight.dtype)
        if key not in self._known:
            self._known[key] = self._try(weight, bias)
        packs, good = self._known[key]
        return _InvariantLinear(_ways(weight, bias)[packs](), weight.shape[0], good)

    @torch.inference_mode()
    def _try(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[bool, list[int]]:
        row = cancelling(1, weight.shape[1], dtype=weight.dtype)
        for packs, make in reversed(_ways(weight, bias).items()):
            product = make()
            for counts in ((*_COUNTS, _MANY), _COUNTS):
                good = sizes(partial(_repeated, product, row), counts)
                if good:
                    return packs, good
        raise refusal(f"rows of a product with {tuple(weight.shape)} numbers differ by their place")


def _repeated(product: Product, row: torch.Tensor, count: int) -> torch.Tensor:
    return product(row.repeat(count, 1))


def _ways(weight: torch.Tensor, bias: torch.Tensor | None) -> dict[bool, Callable[[], Product]]:
    """How to compute ``x @ weight.T + bias``: plain, and packed where oneDNN has the type."""

    def plain() -> Product:
        return lambda x: F.linear(x, weight, bias)

    def packed() -> Product:
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
        run = torch.ops.mkldnn._linear_pointwise
        return lambda x: run(x, reordered, bias, "none", [], "")

    return {False: plain, True: packed} if onednn(weight.dtype) else {False: plain}


class _InvariantLinear(Linear):
    """``x @ weight.T + bias`` with numbers of rows that were tried."""

    __slots__ = ("_columns", "_good", "_product")

    def __init__(self, product: Product, columns: int, good: list[int]) -> None:
        self._product, self._columns, self._good = product, columns, good

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] <= _ROWS:
            return self._some(x)
        many = x.shape[0] // _MANY if self._good[-1] == _MANY else 0
        pieces = [_MANY] * many + [_ROWS] * ((x.shape[0] - many * _MANY) // _ROWS)
        rest = x.shape[0] - sum(pieces)
        parts = torch.split(x, pieces + [rest] * bool(rest))
        return self._some(x) if len(parts) == 1 else torch.cat([self._some(p) for p in parts])

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + self(x)``."""
        return self(x).add_(residual)

    def _some(self, x: torch.Tensor) -> torch.Tensor:
        count = x.shape[0]
        out = self._product(fill(x, padded(self._good, count)))
        return out[:count]

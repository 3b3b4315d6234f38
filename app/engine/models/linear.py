"""A matrix product with a weight that never changes."""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["Linear", "onednn", "packs"]

_ROWS_HINT = 32
_MANY = 400
"""Rows from which on a plain float32 product is faster, the unpacking of its weight included."""


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights are kept in oneDNN's own layout: on CPUs that it is made for."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and onednn(dtype)


def onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there, and made for numbers of this type on this CPU."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Linear:
    """``x @ weight.T + bias``.

    On CPU the weight is reordered once into oneDNN's blocked layout, where the plain product
    reorders it at every call. Measured on a 2-core EPYC, in bfloat16: same bits, twice as fast at 1
    to 8 rows, a fifth faster at 64. In float32 (processor time): 1.4 to 1.9 times as fast at 2 to 8
    rows, 1.1 to 1.2 at 16 to 64, and one row is shared among threads, where the plain product
    uses one. From about 100 rows on it is up to a tenth slower, so for many the weight is
    unpacked again, which takes a twentieth of their product.

    In bfloat16 a row's result does not depend on the other rows (tested with sums that cancel,
    where any other order of addition shows). oneDNN breaks this for a single row alone, whose long
    sums it splits; so a single row is computed beside a copy of itself.
    """

    __slots__ = ("_doubles", "_packed", "bias", "weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.bias = bias
        self._packed = packs(weight.device, weight.dtype)
        self._doubles = weight.dtype == torch.bfloat16
        if self._packed:
            self.weight: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
        else:
            self.weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if (plain := self._plain(x)) is not None:
            return F.linear(x, plain, self.bias)
        single = self._doubles and x.shape[0] == 1
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            torch.cat((x, x)) if single else x, self.weight, self.bias, "none", [], ""
        )
        return out[:1] if single else out

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + self(x)``, rounded once where the weight is packed."""
        if (plain := self._plain(x)) is not None:
            return F.linear(x, plain, self.bias).add_(residual)
        single = self._doubles and x.shape[0] == 1
        if single:
            x, residual = torch.cat((x, x)), torch.cat((residual, residual))
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, residual, self.weight, self.bias, "add"
        )
        return out[:1] if single else out

    def _plain(self, x: torch.Tensor) -> torch.Tensor | None:
        """The weight in its own layout, if that is better for so many rows."""
        if not self._packed:
            return self.weight
        if x.dtype == torch.float32 and x.shape[0] >= _MANY:
            return self.weight.to_dense()
        return None

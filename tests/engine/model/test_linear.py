"""The matrix product: right, and blind to what other rows there are."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from app.engine.models.linear import Linear, packs

CPU = torch.device("cpu")
ROWS = [1, 2, 3, 5, 8, 16, 31, 64, 65, 200]


def cancelling(rows: int, columns: int, inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and weight whose exact product is zero: what remains is the order of addition."""
    random = torch.Generator().manual_seed(inner)

    def wild(*shape: int) -> torch.Tensor:
        big = torch.randn(*shape, generator=random).mul(2).exp()
        return (torch.randn(*shape, generator=random) * big).bfloat16()

    x, w = wild(rows, inner // 2), wild(columns, inner // 2)
    order = torch.randperm(inner, generator=random)
    return torch.cat((x, x), 1)[:, order], torch.cat((w, -w), 1)[:, order]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 7, 450])
def test_equals_the_plain_product(dtype: torch.dtype, rows: int) -> None:
    random = torch.Generator().manual_seed(0)
    x, w, b, r = (
        torch.randn(*shape, generator=random).to(dtype)
        for shape in ((rows, 48), (32, 48), (32,), (rows, 32))
    )
    linear = Linear(w, b)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.02}
    torch.testing.assert_close(linear(x), F.linear(x, w, b), **close)
    torch.testing.assert_close(linear.add_to(r, x), F.linear(x, w, b) + r, **close)


@pytest.mark.skipif(
    not packs(CPU, torch.bfloat16), reason="bfloat16 is not the CPU's default without oneDNN"
)
@pytest.mark.parametrize("columns, inner", [(960, 576), (576, 576), (576, 1536), (64, 4096)])
@torch.inference_mode()
def test_rows_are_independent(columns: int, inner: int) -> None:
    x, w = cancelling(256, columns, inner)
    linear = Linear(w)
    whole = linear(x)
    assert whole.count_nonzero() > whole.numel() // 2  # the sums do not simply vanish
    residual = torch.zeros(256, columns, dtype=torch.bfloat16)
    for rows in ROWS:
        assert torch.equal(linear(x[:rows]), whole[:rows]), rows
        assert torch.equal(linear.add_to(residual[:rows], x[:rows]), whole[:rows]), rows

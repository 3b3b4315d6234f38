"""The paged KV cache: one tensor, cut into blocks that sequences own by number."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from app.engine.models.base import ModelShape
from app.errors import StartupError

__all__ = ["KVCache", "plan_blocks", "token_bytes"]

_DEFAULT_CPU = 512 * 2**20


class KVCache:
    """Keys and values of all layers.

    ``data`` is ``[layers, blocks, 2, kv_heads, block_size, head_dim]``; index 0 of the third
    dimension holds keys, 1 values. A head's part of a block is contiguous, so that gathering
    blocks yields what a batched product over (sequence, head) takes, without another copy.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        blocks: int,
        block_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.blocks, self.block_size, self.shape = blocks, block_size, shape
        dims = (shape.layers, blocks, 2, shape.kv_heads, block_size, shape.head_dim)
        # zeros: a masked position still takes part as 0 * value, which must be a number
        if device.type == "cpu":
            # numpy's zeros take their pages only when written, torch's at once
            raw = torch.from_numpy(np.zeros(math.prod(dims) * dtype.itemsize, np.uint8))
            self.data = raw.view(dtype).view(dims)
        else:
            self.data = torch.zeros(dims, device=device, dtype=dtype)


def token_bytes(shape: ModelShape, dtype: torch.dtype) -> int:
    """Bytes that one token takes in the cache."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * dtype.itemsize


def plan_blocks(
    shape: ModelShape,
    *,
    block_size: int,
    memory: int,
    max_batch: int,
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """How many blocks to allocate.

    ``memory`` 0 chooses: on CPU 512 MiB or what one sequence of full length needs, at most a
    quarter of the available memory; on a GPU nine tenths of what is free. Never more than
    ``max_batch`` sequences of full length can use.

    Raises:
        StartupError: not even one sequence of full length fits.

    """
    block = block_size * token_bytes(shape, dtype)
    one = -(-shape.context // block_size)
    budget = memory or _choose(device, one * block)
    blocks = min(budget // block, one * max_batch)
    if blocks < one:
        least = _mib(one * block)
        raise StartupError(
            f"The KV cache would have {_mib(blocks * block)}, but one sequence of "
            f"{shape.context} tokens takes {least}",
            hint="Raise engine.kv_memory to at least that, or lower engine.max_context"
            if memory
            else f"Lower engine.max_context, or set engine.kv_memory to {one * block} or more.",
        )
    return blocks


def _choose(device: torch.device, least: int) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free * 9 // 10
    wish = max(_DEFAULT_CPU, least)
    available = _available()
    return wish if available is None else min(wish, available // 4)


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"

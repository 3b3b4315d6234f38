"""GGUF files: header, metadata, and tensors dequantized one at a time.

Format: the GGUF specification of the ggml project, versions 2 and 3, little-endian. The header is
parsed here rather than by the ``gguf`` package, whose reader takes seconds over the string arrays
of a vocabulary; its ``dequantize`` serves every type this file has no faster path for.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from app.engine.weights.checkpoint import Checkpoint, Damaged
from app.errors import StartupError

if TYPE_CHECKING:
    import torch  # imported where it is needed: who reads only the vocabulary does without

__all__ = ["GGUFCheckpoint"]

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
# ggml type number -> (values in a block, bytes of a block)
_F32, _F16, _Q4_0, _Q4_1, _Q8_0, _BF16 = 0, 1, 2, 3, 8, 30
_BLOCKS = {
    _F32: (1, 4),
    _F16: (1, 2),
    _BF16: (1, 2),
    _Q4_0: (32, 18),
    _Q4_1: (32, 20),
    _Q8_0: (32, 34),
}
_MAX_ITEMS = 1 << 24  # no vocabulary is larger; a count beyond it is a damaged length field


class _Entry(NamedTuple):
    shape: tuple[int, ...]
    type: int
    start: int
    size: int


class _Cursor:
    """Reads the header. Every length is checked against the file, so damage cannot run away."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.end = path, data, 0, len(data)

    def take(self, size: int) -> int:
        at = self.at
        if size < 0 or at + size > self.end:
            raise Damaged(self.path, f"its header ends early, at byte {at}")
        self.at = at + size
        return at

    def number(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        return struct.unpack_from("<" + code, self.data, self.take(size))[0]

    def string(self) -> str:
        size = self.number("Q")
        at = self.take(size)
        return self.data[at : at + size].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise Damaged(self.path, f"unknown value type {kind} at byte {self.at}")
        return self.number(_SCALARS[kind])

    def array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if count > _MAX_ITEMS:
            raise Damaged(self.path, f"an array of {count} values at byte {self.at}")
        if kind in _SCALARS:
            code = f"<{count}{_SCALARS[kind]}"
            return list(struct.unpack_from(code, self.data, self.take(struct.calcsize(code))))
        return [self.value(kind) for _ in range(count)]


class GGUFCheckpoint(Checkpoint):
    """An open GGUF file.

    Raises:
        StartupError: not a GGUF file, an unsupported version or tensor type.
        Damaged: the file is shorter than its header says, or its header makes no sense.

    """

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, [path]
        with path.open("rb") as stream:
            if stream.read(4) != _MAGIC:
                raise StartupError(
                    f"{path} is not a GGUF file (it does not begin with GGUF)",
                    hint="If it was fetched, it is damaged: `everlog models pull --force`. "
                    "Otherwise give a GGUF file or a folder with config.json.",
                )
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._parse()
        except BaseException:
            self.close()
            raise

    def _parse(self) -> None:
        cursor = _Cursor(self.path, self._map)
        cursor.take(4)
        version = cursor.number("I")
        if version not in (2, 3):
            raise StartupError(
                f"{self.path}: GGUF version {version} is not supported",
                hint="Versions 2 and 3 (little-endian) are; convert the model again.",
            )
        tensors, pairs = cursor.number("Q"), cursor.number("Q")
        if max(tensors, pairs) > _MAX_ITEMS:
            raise Damaged(self.path, f"{tensors} tensors and {pairs} metadata keys")
        self.metadata = {}
        for _ in range(pairs):
            key = cursor.string()
            self.metadata[key] = cursor.value(cursor.number("I"))
        headers = [self._tensor_header(cursor) for _ in range(tensors)]
        align = self.metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align <= 0:
            raise Damaged(self.path, f"alignment {align!r}")
        base = -(-cursor.at // align) * align
        self._tensors = {
            name: self._entry(name, base, shape, kind, at) for name, shape, kind, at in headers
        }
        architecture = self.metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise Damaged(self.path, "general.architecture is missing")
        self.architecture = architecture

    def _tensor_header(self, cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
        name, dims = cursor.string(), cursor.number("I")
        if not 0 < dims <= 4:
            raise Damaged(self.path, f"tensor {name!r} has {dims} dimensions")
        # innermost dimension first in the file
        shape = tuple(reversed([cursor.number("Q") for _ in range(dims)]))
        return name, shape, cursor.number("I"), cursor.number("Q")

    def _entry(self, name: str, base: int, shape: tuple[int, ...], kind: int, at: int) -> _Entry:
        values, size = _block(self.path, name, kind)
        if shape[-1] % values or 0 in shape:
            raise Damaged(self.path, f"tensor {name!r} has shape {shape}, not blocks of {values}")
        count = 1
        for length in shape:
            count *= length
        start, total = base + at, count // values * size
        if start + total > len(self._map):
            raise Damaged(
                self.path,
                f"tensor {name!r} ends at byte {start + total}, the file at {len(self._map)}",
            )
        return _Entry(shape, kind, start, total)

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, outermost dimension first."""
        return self._lookup(name).shape

    def tensor(self, name: str) -> torch.Tensor:
        """Read and dequantize a tensor (float32; F16 and BF16 stay as they are)."""
        import torch

        entry = self._lookup(name)
        # copied out, so that closing the map cannot invalidate a tensor
        raw = np.frombuffer(self._map, np.uint8, entry.size, entry.start).copy()
        tensor = _dequantize(raw, entry).view(entry.shape)
        if not bool(torch.isfinite(tensor.sum())):
            raise Damaged(self.path, f"tensor {name!r} has values that are no numbers")
        return tensor

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()

    def _lookup(self, name: str) -> _Entry:
        try:
            return self._tensors[name]
        except KeyError:
            raise Damaged(self.path, f"tensor {name!r} is missing") from None


def _block(path: Path, name: str, kind: int) -> tuple[int, int]:
    if kind in _BLOCKS:
        return _BLOCKS[kind]
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        return GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise Damaged(path, f"tensor {name!r} has the unknown type {kind}") from None


def _dequantize(raw: np.ndarray[Any, Any], entry: _Entry) -> torch.Tensor:
    import torch

    data = torch.from_numpy(raw)
    if entry.type == _F32:
        return data.view(torch.float32)
    if entry.type == _F16:
        return data.view(torch.float16)
    if entry.type == _BF16:
        return data.view(torch.bfloat16)
    if entry.type not in _BLOCKS:
        return _dequantize_any(raw, entry)
    blocks = data.view(-1, _BLOCKS[entry.type][1])
    scale = blocks[:, :2].contiguous().view(torch.float16).float()
    if entry.type == _Q8_0:
        return blocks[:, 2:].view(torch.int8).float().mul_(scale)
    packed = blocks[:, 2 if entry.type == _Q4_0 else 4 :]
    # low nibbles are the first half of a block, high nibbles the second
    out = torch.empty(len(blocks), 32)
    out[:, :16] = packed & 15
    out[:, 16:] = packed >> 4
    if entry.type == _Q4_0:
        return out.sub_(8).mul_(scale)
    minimum = blocks[:, 2:4].contiguous().view(torch.float16).float()
    return out.mul_(scale).add_(minimum)


def _dequantize_any(raw: np.ndarray[Any, Any], entry: _Entry) -> torch.Tensor:
    import torch
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(entry.type)
    rows = raw.reshape(-1, raw.size * entry.shape[-1] // _count(entry.shape))
    try:
        return torch.from_numpy(np.ascontiguousarray(dequantize(rows, kind), np.float32))
    except NotImplementedError:
        raise StartupError(
            f"Tensors of type {kind.name} are not supported",
            hint="Use another quantization of the model, such as Q8_0, Q4_K_M or F16.",
        ) from None


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count

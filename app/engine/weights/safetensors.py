"""Folders as Hugging Face lays them out: config.json and one or more safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from safetensors import SafetensorError, safe_open

from app.engine.weights.checkpoint import Checkpoint, Damaged
from app.errors import StartupError

if TYPE_CHECKING:
    import torch

__all__ = ["SafetensorsCheckpoint", "read_json"]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Parse a file that holds a JSON object.

    Raises:
        Damaged: it does not.

    """
    try:
        value = msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise Damaged(path, str(error)) from None
    if not isinstance(value, dict):
        raise Damaged(path, "not a JSON object")
    return value


class SafetensorsCheckpoint(Checkpoint):
    """An open folder.

    Raises:
        StartupError: a file is missing.
        Damaged: a file cannot be read.

    """

    format = "hf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata = read_json(path / "config.json")
        architectures = self.metadata.get("architectures")
        if not isinstance(architectures, list) or not architectures:
            raise Damaged(path / "config.json", "architectures is missing")
        self.architecture = str(architectures[0])
        self.files = self._find()
        self._open: dict[Path, Any] = {}
        self._where: dict[str, Any] = {}
        try:
            for file in self.files:
                self._add(file)
        except BaseException:
            self.close()
            raise

    def _find(self) -> list[Path]:
        if (self.path / _SINGLE).is_file():
            return [self.path / _SINGLE]
        index = self.path / _INDEX
        if not index.is_file():
            raise StartupError(
                f"No weights in {self.path}: neither {_SINGLE} nor {_INDEX}",
                hint="Give a folder with safetensors files (not *.bin), or a GGUF file.",
            )
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict):
            raise Damaged(index, "weight_map is missing")
        files = sorted({self.path / str(name) for name in names.values()})
        for file in files:
            if not file.is_file():
                raise StartupError(f"{file} is missing", hint="Copy the model's folder anew.")
        return files

    def _add(self, file: Path) -> None:
        try:
            handle = safe_open(str(file), framework="pt")
            self._open[file] = handle
            names = handle.keys()  # type: ignore[no-untyped-call]
            self._where.update(dict.fromkeys(names, handle))
        except (SafetensorError, OSError) as error:
            raise Damaged(file, str(error)) from None

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, outermost dimension first."""
        return tuple(self._handle(name).get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        """Read a tensor as stored."""
        import torch

        try:
            tensor: torch.Tensor = self._handle(name).get_tensor(name)
        except SafetensorError as error:
            raise Damaged(self.path, str(error)) from None
        if not bool(torch.isfinite(tensor.float().sum())):
            raise Damaged(self.path, f"tensor {name!r} has values that are no numbers")
        return tensor

    def close(self) -> None:
        """Let go of the files."""
        self._open.clear()
        self._where.clear()

    def _handle(self, name: str) -> Any:
        try:
            return self._where[name]
        except KeyError:
            raise Damaged(self.path, f"tensor {name!r} is missing") from None

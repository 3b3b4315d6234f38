"""What every format of weights offers to a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from app.errors import StartupError

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "Damaged", "open_checkpoint"]


class Damaged(StartupError):
    """A file of the model cannot be what its maker wrote."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path} is damaged: {what}",
            hint="Fetch the model again: `everlog models pull --force`, or copy the file anew.",
        )


class Checkpoint(ABC):
    """A model on disk, opened for reading tensor by tensor.

    Attributes:
        path: What was opened: a file or a folder.
        files: Files that hold the weights, in a fixed order; the digest is made of them.
        format: ``gguf`` or ``hf``; says in which vocabulary ``metadata`` and names are.
        architecture: ``general.architecture`` of a GGUF file, first of ``architectures`` of a
            ``config.json``.
        metadata: Key-value pairs of the GGUF file, or the parsed ``config.json``.

    """

    path: Path
    files: list[Path]
    format: Literal["gguf", "hf"]
    architecture: str
    metadata: dict[str, Any]

    @abstractmethod
    def names(self) -> set[str]:
        """Names of all tensors."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, outermost dimension first."""

    @abstractmethod
    def tensor(self, name: str) -> torch.Tensor:
        """Read a tensor: float32 if it was quantized, else as stored. The caller owns it.

        Raises:
            Damaged: the tensor is missing or cannot be read.

        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the files."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a GGUF file or a folder with ``config.json`` and safetensors.

    Raises:
        StartupError: nothing usable there, or damaged.

    """
    path = Path(path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            found = sorted(path.glob("*.gguf"))
            if len(found) == 1:
                return open_checkpoint(found[0])
            raise StartupError(
                f"No model in {path}: it has no config.json",
                hint="Give a GGUF file, or a folder with config.json, *.safetensors and "
                "tokenizer.json.",
            )
        from app.engine.weights.safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(path)
    if path.is_file():
        from app.engine.weights.gguf import GGUFCheckpoint

        return GGUFCheckpoint(path)
    raise StartupError(
        f"No model at {path}",
        hint="Give a GGUF file or a folder with config.json; `everlog models list` names models "
        "that can be fetched.",
    )

"""What an architecture offers to the runner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol

import msgspec

if TYPE_CHECKING:
    import torch

    from app.engine.weights import Checkpoint

__all__ = ["Attend", "Model", "ModelShape"]


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes that runner, cache and attention need to know of any decoder.

    Attributes:
        layers: Layers that have keys and values.
        heads: Query heads.
        kv_heads: Key and value heads; divides ``heads``.
        head_dim: Width of a head.
        vocab: Rows of the output head.
        context: Longest sequence the model was made for.

    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int


class Attend(Protocol):
    """Store keys and values of this step's tokens, and attend to all up to each token.

    ``q`` is ``[N, heads, head_dim]``, ``k`` and ``v`` are ``[N, kv_heads, head_dim]``; the result
    is ``[N, heads * head_dim]``. N tokens of several sequences lie behind one another.
    """

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor: ...


class Model(ABC):
    """A decoder with its weights in memory.

    A plugin offers a subclass through the entry point group ``everlog.models``.

    Attributes:
        architectures: Names in ``architectures`` of a ``config.json`` that this class runs.
        gguf: Names in ``general.architecture`` of a GGUF file that this class runs.
        shape: Sizes.
        parameters: How many numbers the model learned (tied ones once).
        invariant: Whether `load` takes ``deterministic``, and rows of a pass then come out the
            same, bit for bit, whatever other rows there are.
        width: Length of a hidden state, for architectures that give them (`hidden`, `head`).

    """

    architectures: ClassVar[tuple[str, ...]] = ()
    gguf: ClassVar[tuple[str, ...]] = ()
    invariant: ClassVar[bool] = False
    shape: ModelShape
    parameters: int
    width: int = 0

    @classmethod
    @abstractmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        dtype: torch.dtype,
        context: int,
    ) -> Model:
        """Read the weights tensor by tensor. ``context`` 0 takes the model's own.

        An architecture that is ``invariant`` takes ``deterministic`` beside these.

        Raises:
            StartupError: the checkpoint does not fit this architecture.

        """

    @abstractmethod
    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attend: Attend,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """One pass over N tokens.

        Args:
            tokens: Ids, int64 ``[N]``.
            positions: Position of each in its sequence, int64 ``[N]``.
            attend: Attention over the paged cache.
            rows: Rows for which logits are wanted, int64 ``[R]``; None for all.

        Returns:
            Logits ``[R, vocab]`` in the model's dtype.

        """

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attend: Attend,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """What `forward` computes its logits from: states ``[R, width]``, normed."""
        raise NotImplementedError

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits ``[R, vocab]`` of hidden states ``[R, width]``."""
        raise NotImplementedError

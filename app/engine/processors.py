"""Logits processors: code of others that changes what is drawn, by entry point.

A package names a class under ``everlog.logits_processors``; a request asks for it by that name in
``SamplingParams.processors``, with options.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from importlib.metadata import entry_points
from typing import Any, Protocol

import torch

from app.engine.tokenizer import Tokenizer
from app.errors import InputError

__all__ = ["GROUP", "Processor", "Processors"]

GROUP = "everlog.logits_processors"


class Processor(Protocol):
    """What a plugin's class looks like; there is an instance for each request.

    Its scores must depend on the options and the tokens alone: a request that goes on elsewhere
    gets a new instance, which sees the tokens so far at once.
    """

    def __init__(self, options: Any, tokenizer: Tokenizer) -> None:
        """Raises `InputError` or ValueError if the options are no good."""
        ...

    def __call__(self, scores: torch.Tensor, prompt: Seq[int], output: Seq[int]) -> None:
        """Change the scores of the next token in place.

        Args:
            scores: float32 ``[vocab]``: logits behind penalties and bias; ``-inf`` bans a token.
            prompt: Token ids of the prompt.
            output: Token ids of the answer so far.

        """
        ...


class Processors:
    """The processors of all requests.

    Args:
        tokenizer: Of the model.

    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._of: dict[str, list[tuple[str, Processor]]] = {}

    def prepare(self, request: str, asked: dict[str, Any]) -> None:
        """Make the processors that a request asks for, in its order.

        Raises:
            InputError: One is not installed, does not load, or refuses its options.

        """
        if asked:
            self._of[request] = [(name, self._make(name, asked[name])) for name in asked]

    def of(self, request: str) -> list[tuple[str, Processor]]:
        """The processors of a request, with their names."""
        return self._of.get(request, [])

    def release(self, request: str) -> None:
        """Forget a request."""
        self._of.pop(request, None)

    def _make(self, name: str, options: Any) -> Processor:
        field = f"params.processors.{name}"
        points = entry_points(group=GROUP)
        if name not in points.names:
            known = ", ".join(sorted(points.names)) or "none"
            raise InputError(f"is not installed here; there is: {known}", field=field)
        try:
            made: Processor = points[name].load()(options, self._tokenizer)
        except InputError as error:
            raise InputError(error.message, field=field, hint=error.hint) from None
        except Exception as error:  # it is code of others
            message = f"{type(error).__name__}: {error}"
            raise InputError(message, field=field) from error
        return made

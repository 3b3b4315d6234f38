"""The engine: a host that speaks with the log, and a core process that computes.

For scripts: `LLM`, a model without a server and without a log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.engine.llm import LLM, Completion
    from app.engine.sampling import SamplingParams, Structured

__all__ = ["LLM", "Completion", "SamplingParams", "Structured"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: the core imports this package too, and needs none of it."""
    if name in ("SamplingParams", "Structured"):
        from app.engine import sampling

        return getattr(sampling, name)
    if name in __all__:
        from app.engine import llm

        return getattr(llm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Upcasters: pure functions that lift an old payload to the next schema version.

Stored bytes are never rewritten. A type at schema 3 has two upcasters, ``1 -> 2`` and ``2 -> 3``,
and reading an old event runs the chain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["UPCASTERS", "Upcaster", "upcast", "upcaster"]

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

#: (event type, schema of the payload given) -> function returning the payload of the next schema.
UPCASTERS: dict[tuple[str, int], Upcaster] = {}


def upcaster(event_type: str, schema: int) -> Callable[[Upcaster], Upcaster]:
    """Register a function that lifts ``event_type`` from ``schema`` to ``schema + 1``.

    Raises:
        ValueError: There is one already.

    """

    def register(function: Upcaster) -> Upcaster:
        if (event_type, schema) in UPCASTERS:
            raise ValueError(f"{event_type} has an upcaster from schema {schema} already")
        UPCASTERS[event_type, schema] = function
        return function

    return register


def upcast(event_type: str, schema: int, target: int, data: dict[str, Any]) -> dict[str, Any]:
    """Lift a decoded payload from ``schema`` to ``target``.

    Raises:
        LookupError: A step of the chain is missing.

    """
    for step in range(schema, target):
        function = UPCASTERS.get((event_type, step))
        if function is None:
            raise LookupError(f"no upcaster for {event_type} from schema {step} to {step + 1}")
        data = function(data)
    return data

"""The trace of a caller, as the header ``traceparent`` names it (W3C Trace Context). Pure."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["HEADER", "parse"]

HEADER = "traceparent"

_FORM = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-[\x20-\x7e]{0,200})?"
)


def parse(value: Any) -> tuple[int, int] | None:
    """Ids of the caller's trace and span; None if the value names none."""
    found = _FORM.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[1] == "ff" or (found[1] == "00" and len(found[0]) != 55):
        return None
    trace, span = int(found[2], 16), int(found[3], 16)
    return (trace, span) if trace and span else None

"""Lists as OpenAI's clients page through them: ``order``, ``after`` and ``limit``. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.transport.openai.errors import refusal

__all__ = ["MAX_LIMIT", "listing", "page"]

MAX_LIMIT = 100
LIMIT = 20


def page(
    items: Sequence[dict[str, Any]],
    query: Mapping[str, str],
    *,
    most: int = MAX_LIMIT,
    usual: int = LIMIT,
) -> dict[str, Any]:
    """The part of a list that a query asks for.

    Args:
        items: In the order ``asc``.
        query: Of the request.
        most: Largest ``limit``.
        usual: The one without a ``limit``.

    Raises:
        ApiError: 400: a parameter is not as it should be, or names no item.

    """
    order, after = query.get("order", "desc"), query.get("after")
    if order not in ("asc", "desc"):
        raise refusal("order", "order must be asc or desc")
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        ids = [item["id"] for item in ordered]
        if after not in ids:
            raise refusal("after", f"there is no item {after[:100]!r} here")
        ordered = ordered[ids.index(after) + 1 :]
    limit = _limit(query.get("limit", str(usual)), most)
    return listing(ordered[:limit], more=len(ordered) > limit)


def listing(items: Sequence[dict[str, Any]], *, more: bool = False) -> dict[str, Any]:
    """A list as clients read it."""
    return {
        "object": "list",
        "data": list(items),
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": more,
    }


def _limit(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9) or not 1 <= int(text) <= most:
        raise refusal("limit", f"limit must be between 1 and {most}")
    return int(text)

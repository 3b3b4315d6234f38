"""``/v1/models``: what the engine at work has loaded. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from app.transport.openai.errors import ApiError

__all__ = ["Model", "chosen", "describe", "listing"]

OWNER = "everlog"


class Model(msgspec.Struct, frozen=True):
    """A model that answers.

    Attributes:
        id: Its name.
        root: Its name among workers.
        context: Most tokens of prompt and answer together.
        created: When it was loaded, in seconds since the epoch.
        also: Other names that it goes by.

    """

    id: str
    root: str
    context: int
    created: int
    also: tuple[str, ...] = ()


def describe(model: Model) -> dict[str, Any]:
    """A model as clients read it."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": OWNER,
        "root": model.root,
        "parent": None,
        "max_model_len": model.context,
    }


def listing(models: Iterable[Model]) -> dict[str, Any]:
    """All of them."""
    return {"object": "list", "data": [describe(model) for model in models]}


def chosen(models: list[Model], name: str | None) -> Model | None:
    """The model that a request names; without a name the first. None: nothing is known yet.

    Raises:
        ApiError: 404: there are models, and this is none of them.

    """
    if not models:
        return None
    if name is None:
        return models[0]
    for model in models:
        if name in (model.id, model.root, *model.also):
            return model
    names = ", ".join(dict.fromkeys(model.id for model in models))
    raise ApiError(
        404,
        f"there is no model {name!r} here; there is {names}",
        param="model",
        code="model_not_found",
    )

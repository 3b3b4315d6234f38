"""Which class runs which architecture."""

from __future__ import annotations

from importlib.metadata import entry_points

from app.engine.models.base import Model
from app.engine.weights import Checkpoint
from app.errors import StartupError

__all__ = ["GROUP", "known", "lookup"]

GROUP = "everlog.models"


def known() -> list[type[Model]]:
    """All model classes: plugins first, so that they can replace a built-in one.

    Raises:
        StartupError: a plugin cannot be imported or is no Model.

    """
    from app.engine.models.llama import Llama

    found: list[type[Model]] = []
    for point in entry_points(group=GROUP):
        try:
            cls = point.load()
        except Exception as error:
            raise StartupError(
                f"The model plugin {point.name!r} ({point.value}) failed to load: {error}",
                hint="Fix or uninstall the package that provides it.",
            ) from error
        if not (isinstance(cls, type) and issubclass(cls, Model)):
            raise StartupError(
                f"The model plugin {point.name!r} ({point.value}) is no subclass of "
                "app.engine.models.base.Model"
            )
        found.append(cls)
    return [*found, Llama]


def lookup(checkpoint: Checkpoint) -> type[Model]:
    """Find the class for a checkpoint.

    Raises:
        StartupError: none runs it; the message names those that are known.

    """
    classes = known()
    for cls in classes:
        names = cls.gguf if checkpoint.format == "gguf" else cls.architectures
        if checkpoint.architecture in names:
            return cls
    names = tuple(
        name
        for cls in classes
        for name in (cls.gguf if checkpoint.format == "gguf" else cls.architectures)
    )
    raise StartupError(
        f"{checkpoint.path}: the architecture {checkpoint.architecture!r} is not supported",
        hint=f"Known: {', '.join(names)}. A plugin can add others (entry point group {GROUP}).",
    )

"""Errors that reach a person. Each says what failed and what to do next."""

from __future__ import annotations

__all__ = ["UNEXPLAINED", "EverlogError", "InputError", "StartupError", "cause"]


UNEXPLAINED = "the server failed; see its log"
"""What a client is told of an error that is not meant for people."""


class EverlogError(Exception):
    """Base of every error Everlog raises on purpose.

    Args:
        message: What failed, in one sentence.
        hint: What to do next, or None when the message already says it.

    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # below the traceback, wherever that is shown


class InputError(EverlogError):
    """Input that was refused before it changed anything.

    Attributes:
        reason: Why the value was refused, without the field; ``message`` begins with it.

    Args:
        message: The reason.
        field: Path of the refused field, such as ``params.temperature``.

    """

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message, hint=hint)
        self.reason = message
        self.field = field


class StartupError(EverlogError):
    """The service cannot start; the process exits with code 3."""


def cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return our own error in a group, if there is one, else the first."""
    found: BaseException = group.subgroup(EverlogError) or group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found

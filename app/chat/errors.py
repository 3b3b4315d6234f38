"""Errors of the framework: what a chat author or a client is told."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType
from typing import Literal

from app.errors import EverlogError, InputError

__all__ = [
    "LLMError",
    "LoadError",
    "Refused",
    "RunStopped",
    "author_frames",
    "no_text",
    "trace",
]

_FRAMEWORK = str(Path(__file__).parent)


class Refused(EverlogError):
    """A command that was understood and not carried out.

    Args:
        code: For programs; the transport sends it as it is.
        message: Why, in one sentence.

    """

    def __init__(
        self,
        code: Literal["not_found", "forbidden", "limit", "draining"],
        message: str,
        *,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class LLMError(EverlogError):
    """The engine could not answer.

    Args:
        code: ``timeout``, ``invalid``, ``context`` (the prompt is longer than the model can
            read) or ``error``.
        message: What the engine said.

    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class LoadError(EverlogError):
    """A chat author's file cannot be used. The message begins with ``file:line``."""


class RunStopped(EverlogError):
    """The run was stopped; it can write nothing any more.

    A handler that goes on after it was stopped (in a thread, or in a ``finally``) gets this from
    its next call.
    """

    def __init__(self) -> None:
        super().__init__("this run was stopped; it writes nothing any more")


def author_frames(error: BaseException) -> TracebackType | None:
    """The error's traceback without the frames through which the framework called the author."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_FRAMEWORK):
        frame = frame.tb_next
    return frame or error.__traceback__


def trace(error: BaseException) -> str:
    """The error as Python prints it, from the author's first frame on."""
    shown = traceback.TracebackException(type(error), error, author_frames(error))
    return "".join(shown.format())


def no_text(token: object) -> InputError:
    """Why something cannot be streamed."""
    hint = "Pieces of OpenAI's streams may have none: write `delta.content or ''`."
    return InputError(f"must be text, not {type(token).__name__}", field="token", hint=hint)

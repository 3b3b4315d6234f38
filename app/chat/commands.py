"""What a client may ask of the runtime, checked before anything changes."""

from __future__ import annotations

from typing import Any

import msgspec

from app.engine.sampling import validate
from app.errors import InputError
from app.events.catalogue import SamplingParams
from app.events.ids import is_id

__all__ = [
    "MAX_COMMENT",
    "MAX_CONTENT",
    "MAX_TITLE",
    "Ack",
    "Command",
    "DeleteCommand",
    "FeedbackCommand",
    "PostCommand",
    "RenameCommand",
    "StopCommand",
]

MAX_CONTENT = 100_000
MAX_TITLE = 200
MAX_COMMENT = 10_000


class Ack(msgspec.Struct, frozen=True):
    """The command is durable: ``version`` of the thread and ``seq`` of the log after it."""

    version: int
    seq: int


class _Base(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    thread: str

    def check(self) -> None:
        """Raise `InputError` with the name of the first field that is wrong."""
        _check_id(self.id, "id")
        _check_id(self.thread, "thread")


class PostCommand(_Base, frozen=True, kw_only=True):
    """Say something. ``message`` is the id the client chose for it, or None.

    ``params`` are sampling parameters the user wants, by the names of `SamplingParams`. They stand
    in the message's metadata; the built-in chat keeps to them.
    """

    content: str
    message: str | None = None
    parent: str | None = None
    params: dict[str, Any] | None = None

    def check(self) -> None:
        """See `Command`."""
        super().check()
        _check_text(self.content, "content", MAX_CONTENT)
        if self.message is not None:
            _check_id(self.message, "message")
        if self.parent is not None:
            _check_id(self.parent, "parent")
        if self.params is not None:
            _check_params(self.params)


class StopCommand(_Base, frozen=True, kw_only=True):
    """Stop what the thread is doing."""


class RenameCommand(_Base, frozen=True, kw_only=True):
    """Give the thread a title."""

    title: str

    def check(self) -> None:
        """See `Command`."""
        super().check()
        _check_text(self.title, "title", MAX_TITLE)


class DeleteCommand(_Base, frozen=True, kw_only=True):
    """Hide the thread, and stop what it is doing."""


class FeedbackCommand(_Base, frozen=True, kw_only=True):
    """Judge a message: 1, -1, or 0 to take the judgement back."""

    message: str
    value: int
    comment: str | None = None

    def check(self) -> None:
        """See `Command`."""
        super().check()
        _check_id(self.message, "message")
        if self.value not in (-1, 0, 1):
            raise InputError(f"must be -1, 0 or 1, not {self.value}", field="value")
        if self.comment is not None and len(self.comment) > MAX_COMMENT:
            raise InputError(f"at most {MAX_COMMENT} characters", field="comment")


Command = PostCommand | StopCommand | RenameCommand | DeleteCommand | FeedbackCommand


def _check_id(value: str, field: str) -> None:
    if not is_id(value):
        raise InputError("must be a UUID in lower-case form", field=field)


def _check_params(given: dict[str, Any]) -> None:
    """Refuse unknown names, wrong types and values out of range."""
    types = {field.name: field.type for field in msgspec.structs.fields(SamplingParams)}
    for name, value in given.items():
        if name not in types:
            raise InputError(f"there is no {name!r}", field="params")
        try:
            msgspec.convert(value, types[name], str_keys=True)
        except msgspec.ValidationError as error:
            raise InputError(str(error), field=f"params.{name}") from None
    validate(msgspec.convert(given, SamplingParams, str_keys=True))


def _check_text(value: str, field: str, most: int) -> None:
    if not value.strip():
        raise InputError("must not be empty", field=field)
    if len(value) > most:
        raise InputError(f"at most {most} characters, not {len(value)}", field=field)

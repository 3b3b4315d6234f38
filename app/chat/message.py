"""Messages: what a handler says, whole or streamed."""

from __future__ import annotations

from collections.abc import AsyncIterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from app.chat.context import Context, current
from app.chat.errors import no_text
from app.chat.llm import Generation
from app.errors import EverlogError, InputError
from app.events.catalogue import (
    MessageCompleted,
    MessageDelta,
    MessageEdited,
    MessagePosted,
    MessageRemoved,
    MessageStarted,
    RequestQueued,
)
from app.events.ids import uuid7

__all__ = ["ErrorMessage", "Message"]

_ROLES = {
    "assistant_message": "assistant",
    "user_message": "user",
    "system_message": "system",
}


class Message:
    """A message of the conversation.

    Args:
        content: Text; a dict or list becomes a JSON code block.
        author: Name shown; None shows the app's.
        type: ``assistant_message``, ``user_message`` or ``system_message``.
        metadata: JSON values kept with it.
        language: Show the content as code in this language.
        tags: Kept in the metadata.
        id, parent_id: Ids, chosen by Everlog if None.

    """

    level = "info"

    def __init__(
        self,
        content: str | dict[str, Any] | list[Any] = "",
        author: str | None = None,
        language: str | None = None,
        type: str = "assistant_message",
        metadata: dict[str, Any] | None = None,
        tags: list[str] | None = None,
        id: str | None = None,
        parent_id: str | None = None,
        created_at: str | None = None,
    ) -> None:
        if type not in _ROLES:
            raise InputError(f"must be one of {', '.join(_ROLES)}, not {type!r}", field="type")
        self.id = id or uuid7()
        self.author = author
        self.type = type
        self.parent_id = parent_id
        self.language = language
        self.tags = tags
        self.metadata = dict(metadata or {})
        self.created_at = created_at or datetime.now(UTC).isoformat()
        self.request: str | None = None
        self.step: str | None = None  # the innermost that was open when it was sent
        self._parts = [_text(content)]
        self._state = "new"  # new -> (streaming | bound) -> done; removed
        self._stored = ("", "")  # content and metadata in the log, once done

    @property
    def role(self) -> str:
        """``assistant``, ``user`` or ``system``."""
        return _ROLES[self.type]

    @property
    def content(self) -> str:
        """The whole text so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0]

    @content.setter
    def content(self, text: str) -> None:
        self._parts = [text]

    @property
    def open(self) -> bool:
        """Whether it has begun to stream and has not ended."""
        return self._state == "streaming"

    @property
    def removed(self) -> bool:
        """Whether it was hidden again."""
        return self._state == "removed"

    async def send(self) -> Message:
        """Show the message; returns once it is in the log.

        An empty one begins to stream: ``stream_token`` fills it, ``update`` ends it.
        """
        ctx = current()
        if self._state == "new" and not self.content:
            self._begin(ctx)
            await ctx.emitter.flush()
        elif self._state == "new":
            self._state = "done"
            self._stored = self._value()
            self._say(ctx)
            await ctx.commit(self._posted())
        else:
            await self.update()
        return self

    async def stream_token(self, token: str, is_sequence: bool = False) -> None:
        """Add text at the end; with ``is_sequence`` replace all of it.

        Returns before the text is durable, and waits only when too much is not. Nobody sees it
        before it is.

        Raises:
            InputError: It is no text.

        """
        if not isinstance(token, str):
            raise no_text(token)
        if is_sequence:
            return await self._replace(token)
        ctx = current()
        if self._state != "streaming":
            self._prepare(ctx)
        self._parts.append(token)
        await ctx.emitter.piece(MessageDelta, self.id, token)
        return None

    async def stream_from(self, source: Generation | AsyncIterable[str]) -> Message:
        """Stream a whole answer; returns when it has ended.

        An ``llm`` call is bound to the message: its tokens are in the log once, and go on being
        generated if this process dies. Any other source of text is streamed piece by piece.

        Raises:
            LLMError: The engine could not answer.
            InputError: ``source`` gives something else than text.

        """
        ctx = current()
        if not hasattr(source, "__aiter__"):
            kind = type(source).__name__
            raise InputError(f"must be an async iterable of text, not {kind}", field="source")
        if isinstance(source, Generation) and not source.started and self._state == "new":
            if self.content:
                raise InputError("must be empty to be streamed into", field="content")
            self._state, self.request = "bound", source.request
            self._say(ctx)
            await source.start(self._bind)
            try:
                await source.text()
            finally:
                self._state = "done"
                self._parts = list(source.pieces) or [""]
                self._stored = self._value()
            return self
        async for piece in source:
            await self.stream_token(piece)
        await self.update()
        return self

    async def update(self) -> bool:
        """Write the content as it is now: ends a streamed message, edits a sent one."""
        ctx = current()
        if self._state == "new":
            await self.send()
        elif self._state == "streaming":
            self._state, self._stored = "done", self._value()
            await ctx.commit(MessageCompleted(message=self.id, content=self.content))
        elif self._state == "removed":
            raise EverlogError("the message was removed; it cannot be updated")
        elif self._value() != self._stored:
            self._stored = self._value()
            edited = MessageEdited(message=self.id, content=self.content, metadata=self._metadata())
            await ctx.commit(edited)
        return True

    async def remove(self) -> bool:
        """Hide the message. The log keeps that it was there."""
        ctx = current()
        if self._state not in ("new", "removed"):
            await ctx.commit(MessageRemoved(message=self.id))
        self._state = "removed"
        return True

    def ended(self) -> MessageCompleted:
        """End it as it is; returns the event (the runtime's, for messages left open)."""
        self._state, self._stored = "done", self._value()
        return MessageCompleted(message=self.id, content=self.content)

    # ------------------------------------------------------------------------- internal

    def _prepare(self, ctx: Context) -> None:
        """Make ready for a piece of text."""
        if self._state == "new":
            before = self.content
            self._begin(ctx)
            if before:
                ctx.emitter.put(MessageDelta(message=self.id, text=before))
        elif self._state == "done" and self.request is None:
            if self._value() != self._stored:
                ctx.emit(MessageEdited(message=self.id, content=self.content))
            self._state = "streaming"
        else:
            raise EverlogError(
                f"the message is {self._state}; it takes no more text",
                hint="Stream into a new Message, or set .content and call update().",
            )

    def _say(self, ctx: Context) -> None:
        self.step = ctx.step.id if ctx.step else None
        ctx.said.append(self)

    def _begin(self, ctx: Context) -> None:
        self._state = "streaming"
        self._say(ctx)
        ctx.emit(self._started())

    async def _replace(self, text: str) -> None:
        ctx = current()
        if self._state == "new":
            self.content = ""
            self._begin(ctx)
        self.content = text
        ctx.emit(MessageEdited(message=self.id, content=text))

    def _bind(self, queued: RequestQueued) -> list[Any]:
        return [self._started(queued.request), queued]

    def _posted(self) -> MessagePosted:
        return MessagePosted(
            message=self.id,
            role=self.role,
            content=self.content,
            author=self.author,
            parent=self.parent_id,
            step=self.step,
            level=self.level,
            metadata=self._metadata(),
        )

    def _started(self, request: str | None = None) -> MessageStarted:
        return MessageStarted(
            message=self.id,
            role=self.role,
            author=self.author,
            parent=self.parent_id,
            step=self.step,
            request=request,
            metadata=self._metadata(),
        )

    def _metadata(self) -> dict[str, Any]:
        extra = {"language": self.language, "tags": self.tags}
        return self.metadata | {key: value for key, value in extra.items() if value}

    def _value(self) -> tuple[str, str]:
        return self.content, msgspec.json.encode(self._metadata()).decode()


class ErrorMessage(Message):
    """A message that says that something went wrong."""

    level = "error"

    async def send(self) -> Message:
        """Show the card; returns once it is in the log."""
        self.content = self.content or "Something went wrong."
        return await super().send()


def _text(content: Any) -> str:
    """Texts as they are, dicts and lists as JSON, anything else as Python prints it."""
    return _json_block(content) if isinstance(content, dict | list) else str(content)


def _json_block(value: dict[str, Any] | list[Any]) -> str:
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    return f"```json\n{text}\n```"

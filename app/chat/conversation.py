"""The conversation so far, as a prompt takes it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from app.chat.context import current
from app.chat.message import Message
from app.projections.state import MessageState, ThreadState, load

__all__ = ["ChatContext", "ThreadDict", "chat_context", "history", "thread_dict", "turns_of"]

ThreadDict = dict[str, Any]
"""What ``on_chat_resume`` gets: ``id``, ``name``, ``createdAt``, ``userId``, ``metadata`` and
``steps``, a list of messages with ``id``, ``type``, ``name``, ``output``, ``parentId``."""

_TYPES = {"user": "user_message", "system": "system_message"}


def turns_of(messages: Iterable[MessageState]) -> list[dict[str, str]]:
    """What was said, in order: no error cards, nothing removed or empty, no messages in steps."""
    return [{"role": m.role, "content": m.content} for m in messages if _counts(m)]


async def history(limit: int | None = None) -> list[dict[str, str]]:
    """Return the thread's messages as ``{"role": ..., "content": ...}``, oldest first.

    Read from the log, so it holds what this run has said as well; the last one is usually the
    message being answered. Put a system prompt before it, and give it to ``llm.chat``.

    Args:
        limit: At most so many, the latest ones.

    """
    ctx = current()
    ctx.put_session()
    await ctx.emitter.flush()
    state = await load(ctx.store, ctx.thread)
    found = turns_of(state.messages) if state is not None else []
    return found if limit is None else found[max(len(found) - limit, 0) :]


class ChatContext:
    """The conversation at the start of the run, plus what the run has said; no waiting."""

    def get(self) -> list[Message]:
        """Return the messages, oldest first."""
        ctx = current()
        before = [_message(m) for m in ctx.past if _counts(m)]
        return before + [m for m in ctx.said if _said(m)]

    def to_openai(self) -> list[dict[str, str]]:
        """Return the messages as ``{"role": ..., "content": ...}``."""
        return [{"role": m.role, "content": m.content} for m in self.get()]


chat_context = ChatContext()


def thread_dict(state: ThreadState) -> ThreadDict:
    """Return a thread as ``on_chat_resume`` gets it."""
    return {
        "id": state.id,
        "name": state.title,
        "createdAt": state.created,
        "userId": state.owner,
        "metadata": state.metadata,
        "steps": [
            {
                "id": m.id,
                "type": _TYPES.get(m.role, "assistant_message"),
                "name": m.author or m.role,
                "output": m.content,
                "parentId": m.parent,
                "createdAt": m.created,
                "isError": m.level == "error",
            }
            for m in state.messages
            if m.status != "removed"
        ],
    }


def _counts(m: MessageState) -> bool:
    return bool(m.content) and m.level != "error" and m.status != "removed" and m.step is None


def _said(m: Message) -> bool:
    return bool(m.content) and m.level != "error" and not m.removed and m.step is None


def _message(state: MessageState) -> Message:
    return Message(
        content=state.content,
        author=state.author,
        type=_TYPES.get(state.role, "assistant_message"),
        id=state.id,
        parent_id=state.parent,
        metadata=state.metadata,
    )

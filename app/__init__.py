"""Everlog: a chat service whose only truth is an event log.

A chat author's names live here::

    from app import Message, llm, on_message

    @on_message
    async def main(message: Message) -> None:
        await Message().stream_from(llm.chat(message.content))

They are loaded on first use, so ``import app`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.chat.context import context, make_async, run_sync, sleep
    from app.chat.conversation import ThreadDict, chat_context, history
    from app.chat.errors import LLMError, RunStopped
    from app.chat.hooks import on_chat_end, on_chat_resume, on_chat_start, on_message, on_stop
    from app.chat.llm import llm
    from app.chat.message import ErrorMessage, Message
    from app.chat.session import user_session
    from app.chat.step import Step, step
    from app.events.catalogue import Structured

__version__ = "0.1.0"

__all__ = [
    "ErrorMessage",
    "LLMError",
    "Message",
    "RunStopped",
    "Step",
    "Structured",
    "ThreadDict",
    "__version__",
    "chat_context",
    "context",
    "history",
    "llm",
    "make_async",
    "on_chat_end",
    "on_chat_resume",
    "on_chat_start",
    "on_message",
    "on_stop",
    "run_sync",
    "sleep",
    "step",
    "user_session",
]

_HOMES = {
    "app.chat.context": ("context", "make_async", "run_sync", "sleep"),
    "app.chat.conversation": ("ThreadDict", "chat_context", "history"),
    "app.chat.errors": ("LLMError", "RunStopped"),
    "app.chat.hooks": (
        "on_chat_end",
        "on_chat_resume",
        "on_chat_start",
        "on_message",
        "on_stop",
    ),
    "app.chat.llm": ("llm",),
    "app.chat.message": ("ErrorMessage", "Message"),
    "app.chat.session": ("user_session",),
    "app.chat.step": ("Step", "step"),
    "app.events.catalogue": ("Structured",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'app' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

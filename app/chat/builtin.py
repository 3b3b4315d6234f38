"""The chat that ``everlog serve`` runs when it is given no file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.chat.conversation import history
from app.chat.errors import LLMError
from app.chat.hooks import ChatApp
from app.chat.llm import llm
from app.chat.message import Message
from app.config import ChatConfig

__all__ = ["builtin", "fit"]

#: Characters a token stands for, on the safe side for most languages.
CHARS_PER_TOKEN = 3

Turns = list[dict[str, str]]


def builtin(
    config: ChatConfig | None = None, *, context: Callable[[], int | None] = lambda: None
) -> ChatApp:
    """Return the built-in chat app.

    Args:
        config: System prompt, temperature, longest answer.
        context: Returns how many tokens the model can read, None while unknown.

    """
    chat = config or ChatConfig()
    app = ChatApp(chat.name, waits=True)

    async def answer(prompt: Turns, params: dict[str, Any]) -> None:
        message = Message()
        try:
            await message.stream_from(llm.chat(prompt, **params))
        except LLMError as error:
            if error.code == "context":
                await message.remove()
            raise

    async def on_message(asked: Message) -> None:
        defaults = {"temperature": chat.temperature, "max_tokens": chat.max_tokens}
        params = defaults | (asked.metadata.get("params") or {})
        said = await history()
        system = [{"role": "system", "content": chat.system_prompt}] if chat.system_prompt else []
        prompt = fit(system, said, _budget(context(), params["max_tokens"] or chat.max_tokens))
        try:
            await answer(prompt, params)
        except LLMError as error:
            shorter = fit(system, said, sum(len(turn["content"]) for turn in prompt) // 2)
            if error.code != "context" or len(shorter) == len(prompt):
                raise
            await answer(shorter, params)

    app.register("on_message", on_message)
    return app


def fit(system: Turns, said: Turns, characters: int | None) -> Turns:
    """Return the system prompt and the latest turns that fit; always the last one.

    What is kept begins with a user's turn, since chat templates want turns to alternate.
    """
    if characters is None:
        return system + said
    left = characters - sum(len(turn["content"]) for turn in system)
    kept = 0
    for turn in reversed(said):
        left -= len(turn["content"])
        if left < 0 and kept:
            break
        kept += 1
    latest = said[len(said) - kept :]
    while len(latest) > 1 and latest[0]["role"] != "user":
        latest = latest[1:]
    return system + latest


def _budget(context: int | None, answer: int) -> int | None:
    if context is None:
        return None
    return (context - min(answer, context // 2)) * CHARS_PER_TOKEN

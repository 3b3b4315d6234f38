"""A conversation whose content is erased while a server has it in memory."""

from __future__ import annotations

import asyncio

import app as el
from app.events.erasure import plan_threads, redact
from app.events.logstore import LogStore
from app.events.store import EventStore
from tests.chat.conftest import app_of, serving


async def test_the_next_prompt_is_made_of_what_is_left(store: EventStore, thread: str) -> None:
    assert isinstance(store, LogStore)
    seen: list[list[str]] = []

    async def answer(message: el.Message) -> None:
        seen.append([turn["content"] for turn in el.chat_context.to_openai()])
        await el.Message(f"echo {message.content}").send()

    async with serving(store, app_of(on_message=answer)) as chat:
        await chat.ask(thread, "Zanzibar")
        await chat.ask(thread, "again")
        await redact(store, await plan_threads(store, [thread]), reason="asked for")
        await asyncio.sleep(0.05)  # until the runtime has heard of it
        await chat.ask(thread, "new")
    assert seen[1] == ["Zanzibar", "echo Zanzibar", "again"]
    assert seen[2] == ["[redacted]"] * 4 + ["new"]

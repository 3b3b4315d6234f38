"""A chat without a model for the crash tests: steps, streamed text, session values."""

from __future__ import annotations

import asyncio

from app import Message, Step, on_message, user_session


@on_message
async def main(message: Message) -> None:
    """Answer with numbered words, so that a hole or a repetition shows."""
    user_session.set("turns", (user_session.get("turns") or 0) + 1)
    async with Step(name="think", type="tool") as outer:
        outer.input = message.content
        async with Step(name="look up", type="retrieval") as inner:
            await asyncio.sleep(0.005)
            inner.output = {"found": 3}
        outer.output = "ready"
    reply = Message(content="")
    for n in range(120):
        await reply.stream_token(f"w{n} ")
        await asyncio.sleep(0.004)
    await reply.send()

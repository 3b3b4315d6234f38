"""Handlers of the browser tests: what a message asks for is what comes back. No model."""

import asyncio
from pathlib import Path

from app import Message, Step, on_message, step

TEXTS = Path(__file__).parent / "texts"


@step(type="tool")
async def search(query: str) -> dict[str, int]:
    await asyncio.sleep(0.3)
    return {"found": 12}


@step(type="tool")
async def rank(count: int) -> None:
    raise ValueError("score must be finite")


async def count(words: int, pause: float) -> None:
    """Words that can be told apart, so that a missing or repeated one is seen."""
    out = Message()
    for number in range(words):
        await out.stream_token(f"w{number} ")
        await asyncio.sleep(pause)
    await out.update()


async def steps() -> None:
    async with Step(name="research", type="run") as outer:
        outer.input = {"topic": "rainbows"}
        result = await search("rainbows")
        try:
            await rank(result["found"])
        except ValueError as error:
            outer.output = f"went on without: {error}"
    await Message("There are **12** documents.").send()


@on_message
async def main(message: Message) -> None:
    what, *rest = message.content.split()
    if what == "count":
        await count(int(rest[0]), float(rest[1]) / 1000)
    elif what == "steps":
        await steps()
    elif what == "text":
        out = Message()
        text = (TEXTS / rest[0]).read_text()
        for start in range(0, len(text), 40):
            await out.stream_token(text[start : start + 40])
            await asyncio.sleep(0.002)
        await out.update()
    elif what == "fail":
        raise RuntimeError("the weather service did not answer")
    else:
        await Message(f"You said: {message.content}").send()

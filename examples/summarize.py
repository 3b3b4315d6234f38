"""A summarizer in several steps: split, summarize each part, then the whole. Paste a long text."""

import asyncio

from app import Message, Step, llm, on_message, step

PART = 3000  # characters, some 750 tokens
NOTE = 120  # tokens


@step(type="tool")
def split(text: str) -> list[str]:
    """Cut at paragraphs, so that no part is longer than PART if it can be helped."""
    parts = [""]
    for paragraph in text.split("\n\n"):
        if parts[-1] and len(parts[-1]) + len(paragraph) > PART:
            parts.append("")
        parts[-1] += paragraph + "\n\n"
    return [part.strip() for part in parts]


@step(type="llm")
async def summarize(part: str) -> str:
    # Requests that wait at the same time share the engine's batches.
    return await llm.chat(f"Summarize in two sentences:\n\n{part}", max_tokens=NOTE)


@on_message
async def main(message: Message) -> None:
    async with Step(name="read", type="run") as s:
        parts = split(message.content)
        notes = await asyncio.gather(*(summarize(part) for part in parts))
        s.output = f"{len(parts)} parts"
    if len(notes) == 1:
        await Message(notes[0]).send()
        return
    prompt = "Write one short summary of these notes:\n\n" + "\n".join(f"- {n}" for n in notes)
    await Message().stream_from(llm.chat(prompt, max_tokens=250))

"""Answers from your own texts, with sources.

Run it: DOCUMENTS=folder everlog serve examples/documents.py (by default it reads Everlog's README).
"""

import asyncio
import os
from pathlib import Path

from app import Message, llm, make_async, on_message, step

FOLDER = Path(os.environ.get("DOCUMENTS", Path(__file__).parent.parent))
PART = 1000  # characters, some 250 tokens
BEST = 3  # parts that the model is given

Part = tuple[str, str, list[float]]  # file, text, vector
index: list[Part] = []  # of this process: it can be made anew, so it need not be in the log
indexing = asyncio.Lock()


def split(text: str) -> list[str]:
    """Cut between paragraphs."""
    parts = [""]
    for paragraph in text.split("\n\n"):
        if parts[-1] and len(parts[-1]) + len(paragraph) > PART:
            parts.append("")
        parts[-1] += paragraph[:PART] + "\n\n"
    return [part.strip() for part in parts if part.strip()]


def load() -> list[tuple[str, str]]:
    files = sorted(path for path in FOLDER.glob("*") if path.suffix in (".md", ".txt"))
    return [(file.name, part) for file in files for part in split(file.read_text())]


@step(type="embedding")
async def read_documents() -> str:
    parts = await make_async(load)()
    vectors = await llm.embed([part for _, part in parts])
    index[:] = [(*part, vector) for part, vector in zip(parts, vectors, strict=True)]
    return f"{len(parts)} parts"


@step(type="retrieval")
async def find(question: str) -> list[dict[str, str]]:
    (asked,) = await llm.embed(question)

    def likeness(part: Part) -> float:  # vectors have length 1
        return sum(a * b for a, b in zip(asked, part[2], strict=True))

    best = sorted(index, key=likeness, reverse=True)[:BEST]
    return [{"source": name, "text": text} for name, text, _ in best]


@on_message
async def main(message: Message) -> None:
    async with indexing:  # of messages that come together, the first reads
        if not index:
            await read_documents()
    found = await find(message.content)
    texts = "\n\n".join(part["text"] for part in found)
    system = {"role": "system", "content": f"Answer in a few sentences from this:\n\n{texts}"}
    question = {"role": "user", "content": message.content}
    await Message().stream_from(llm.chat([system, question], max_tokens=200))
    sources = dict.fromkeys(part["source"] for part in found)
    await Message("Sources: " + ", ".join(f"`{name}`" for name in sources)).send()

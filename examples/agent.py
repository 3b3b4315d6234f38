"""An agent: the model chooses tools in a form that it cannot leave; before a deletion it asks.

Try "What is in notes.txt?" and "Delete notes.txt". A larger model than the default one does better.
"""

import json
from typing import Any

from app import Message, Structured, history, llm, on_message, step, user_session

FILES = {"notes.txt": "Buy milk.", "plan.txt": "Meet Ada on Monday."}  # of this process
SYSTEM = f"""You look after the files {", ".join(FILES)}. Answer in JSON with one of:
{{"tool": "read_file", "name": ...}}, {{"tool": "delete_file", "name": ...}},
{{"tool": "answer", "text": ...}}."""


@step(type="tool")
async def read_file(name: str) -> str:
    return FILES[name]  # one that is not there raises: the step fails, and the model is told


@step(type="tool")
async def delete_file(name: str) -> str:
    del FILES[name]
    return f"{name} was deleted."


TOOLS = {"read_file": read_file, "delete_file": delete_file}
DANGEROUS = {"delete_file"}


def form(tool: str, argument: str) -> dict[str, Any]:
    fields = {"tool": {"const": tool}, argument: {"type": "string", "maxLength": 300}}
    must = {"required": [*fields], "additionalProperties": False}
    return {"type": "object", "properties": fields, **must}


FORMS = [*(form(tool, "name") for tool in TOOLS), form("answer", "text")]


async def use(call: dict[str, str]) -> str:
    try:
        return await TOOLS[call["tool"]](call["name"])
    except KeyError:
        return f"There is no file {call['name']}."


@on_message
async def main(message: Message) -> None:
    asked = user_session.get("asked")  # in the log: the question outlives a restart
    if asked is not None:
        user_session.remove("asked")
        agreed = message.content.strip().lower() in ("yes", "y")
        await Message(await use(asked) if agreed else "Then I leave it.").send()
        return
    turns = [{"role": "system", "content": SYSTEM}, *await history(limit=10)]
    for _ in range(4):
        said = await llm.chat(turns, structured=Structured(json_schema={"anyOf": FORMS}))
        call = json.loads(said)
        if call["tool"] == "answer":
            await Message(call["text"]).send()
            return
        if call["tool"] in DANGEROUS:
            user_session.set("asked", call)
            await Message(f"May I call `{call['tool']}` with `{call['name']}`? (yes or no)").send()
            return
        turns.append({"role": "assistant", "content": said})
        turns.append({"role": "user", "content": f"It says: {await use(call)} Now answer."})
    await Message("I give up.").send()

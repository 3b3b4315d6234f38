"""Tools for models whose chat template does not know of any.

The convention is that of the Hermes models, which SmolLM2 and Qwen were trained on too: the tools
stand in the system message as JSON, calls come as ``<tool_call>`` elements, and what a tool said
goes back as ``<tool_response>`` in the user's turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["describe", "knows_tools", "spelled_out"]

_CALL = """<tool_call>
{"name": <function name>, "arguments": <arguments as a JSON object>}
</tool_call>"""


def knows_tools(source: str | None) -> bool:
    """Whether a chat template does something with tools by itself."""
    return "tools" in (source or "")


def describe(tools: Sequence[Mapping[str, Any]]) -> str:
    """What a model is told about its tools."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "You may call functions to help with the user's request. These are the functions, as JSON "
        f"schemas:\n<tools>\n{listed}\n</tools>\n\n"
        "For each call write a JSON object with the function's name and arguments inside "
        f"<tool_call></tool_call>, like this:\n{_CALL}\n"
        "If no function is needed, answer directly."
    )


def spelled_out(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """Messages in which tools, calls and what tools said are plain text."""
    turns = [_turn(message) for message in messages]
    if not tools:
        return turns
    about = describe(tools)
    if turns and turns[0].get("role") == "system":
        first = {**turns[0], "content": f"{turns[0].get('content') or ''}\n\n{about}".lstrip()}
        return [first, *turns[1:]]
    return [{"role": "system", "content": about}, *turns]


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
    turn = dict(message)
    if turn.get("role") == "tool":
        content = f"<tool_response>\n{turn.get('content') or ''}\n</tool_response>"
        return {"role": "user", "content": content}
    calls = turn.pop("tool_calls", None)
    if calls:
        texts = [turn.get("content") or "", *(_call(call) for call in calls)]
        turn["content"] = "\n".join(text for text in texts if text)
    return turn


def _call(call: Mapping[str, Any]) -> str:
    function = call.get("function", {})
    spelled = {"name": function.get("name"), "arguments": function.get("arguments")}
    return f"<tool_call>\n{json.dumps(spelled, ensure_ascii=False)}\n</tool_call>"

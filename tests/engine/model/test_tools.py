"""Tools spelled out for templates that know of none."""

from __future__ import annotations

import json
from typing import Any

from app.engine.tools import knows_tools, spelled_out

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]


def test_which_templates_know_tools() -> None:
    assert knows_tools("{% if tools %}...{% endif %}")
    assert not knows_tools("{{ messages[0].content }}")
    assert not knows_tools(None)


def test_tools_stand_in_the_system_message() -> None:
    system, user = spelled_out(ASKED, [TOOL])
    assert (system["role"], user) == ("system", ASKED[0])
    listed = system["content"].split("<tools>\n")[1].split("\n</tools>")[0]
    assert json.loads(listed) == TOOL
    first, _ = spelled_out([{"role": "system", "content": "Be brief."}, *ASKED], [TOOL])
    assert first["content"].startswith("Be brief.\n\n")
    assert "<tools>" in first["content"]


def test_without_tools_nothing_is_said_of_them() -> None:
    assert spelled_out(ASKED, None) == ASKED
    assert spelled_out(ASKED, []) == ASKED


def test_calls_and_what_tools_said_are_text() -> None:
    turns = [
        {"role": "assistant", "content": "I look.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    called, answered = spelled_out(turns, None)
    assert called["content"].startswith("I look.\n<tool_call>\n")
    assert called["content"].count('{"name": "f", "arguments": {"a": "é"}}') == 2
    assert "tool_calls" not in called
    assert answered == {"role": "user", "content": "<tool_response>\n42\n</tool_response>"}
    assert turns[0]["tool_calls"] == [CALL, CALL]  # what was given is as it was

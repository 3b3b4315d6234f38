"""Tools: what a client offers, which of them must be called, and the schema that says so."""

from __future__ import annotations

from typing import Any

import msgspec

from app.transport.openai.errors import refusal

__all__ = ["Choice", "Tools", "schema", "tools"]

MAX_CALLS = 8
"""Most calls in one answer that has to call."""
_ANY: dict[str, Any] = {"type": "object"}


class Tools(msgspec.Struct, frozen=True):
    """The tools of a request.

    Attributes:
        offered: For the chat template, in OpenAI's form.
        forced: Whether one of them must be called.
        parallel: Whether one answer may hold several calls.

    """

    offered: list[dict[str, Any]] = []
    forced: bool = False
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        """Names of the tools that may be called."""
        return frozenset(tool["function"]["name"] for tool in self.offered)


class _Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Choice(msgspec.Struct):
    """``tool_choice`` as an object."""

    type: str = "function"
    function: dict[str, Any] | None = None
    name: str | None = None


def tools(
    given: list[dict[str, Any]] | None, choice: str | Choice | None, *, parallel: bool = True
) -> Tools:
    """Read the fields ``tools``, ``tool_choice`` and ``parallel_tool_calls``.

    A tool may also have its name beside its type, as the Responses API has it.

    Raises:
        ApiError: 400: a tool is no function, or the choice is not among them.

    """
    offered = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(given or ())]
    if not offered:
        if choice not in (None, "none", "auto"):
            raise refusal("tool_choice", "tool_choice needs tools")
        return Tools()
    if choice is None or isinstance(choice, str):
        if choice not in (None, "none", "auto", "required"):
            raise refusal("tool_choice", "tool_choice must be none, auto, required or a function")
        if choice == "none":
            return Tools()
        return Tools(offered, forced=choice == "required", parallel=parallel)
    name = choice.name or (choice.function or {}).get("name")
    found = [tool for tool in offered if tool["function"]["name"] == name]
    if choice.type != "function" or not found:
        raise refusal("tool_choice", f"tool_choice names {name!r}, which is not among the tools")
    return Tools(found, forced=True, parallel=False)


def _tool(given: dict[str, Any], at: str) -> dict[str, Any]:
    if given.get("type", "function") != "function":
        raise refusal(f"{at}.type", f"{at}: only functions can be called, not {given['type']!r}")
    try:
        function = msgspec.convert(given.get("function", given), type=_Function)
    except msgspec.ValidationError as error:
        raise refusal(f"{at}.function", f"{at}.function: {error}") from None
    plain = {k: v for k, v in msgspec.structs.asdict(function).items() if v is not None}
    return {"type": "function", "function": plain}


def schema(given: Tools) -> dict[str, Any] | None:
    """JSON schema of an answer that must call; None where it need not."""
    if not given.forced:
        return None
    calls = [_call(tool["function"]) for tool in given.offered]
    one = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if not given.parallel:
        return one
    return {"type": "array", "items": one, "minItems": 1, "maxItems": MAX_CALLS}


def _call(function: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "arguments": function.get("parameters") or _ANY,
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }

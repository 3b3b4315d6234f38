"""Messages as clients send them, and as the log keeps them."""

from __future__ import annotations

from typing import Any

import msgspec

from app.events.catalogue import ChatMessage, ToolCall
from app.transport.openai.errors import refusal
from app.transport.openai.fields import fits

__all__ = ["arguments", "message", "messages", "text_of"]

#: Role of a client -> role of a chat template.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
#: Types of content parts that are text, and where it is.
_TEXTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}


class _Function(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] = "{}"


class _Call(msgspec.Struct):
    function: _Function
    id: str = ""


def messages(given: list[dict[str, Any]]) -> list[ChatMessage]:
    """Turns of a prompt.

    Raises:
        ApiError: 400: there is none, or one has no role that is known or no text.

    """
    if not given:
        raise refusal("messages", "messages must not be empty")
    return [message(each, f"messages[{index}]") for index, each in enumerate(given)]


def message(given: dict[str, Any], at: str) -> ChatMessage:
    """One turn; ``at`` is its path, for errors.

    Raises:
        ApiError: 400, as `messages`.

    """
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise refusal(f"{at}.role", f"{at}.role must be one of {', '.join(ROLES)}")
    for key in ("audio", "function_call"):
        if given.get(key) is not None:
            raise refusal(f"{at}.{key}", f"{at}.{key} is not supported")
    calls = _calls(given.get("tool_calls"), f"{at}.tool_calls") if role == "assistant" else None
    content = given.get("content")
    if content is None and role != "assistant":
        raise refusal(f"{at}.content", f"{at}.content is missing")
    if role == "tool" and not isinstance(given.get("tool_call_id"), str):
        raise refusal(f"{at}.tool_call_id", f"{at}.tool_call_id is missing")
    name = given.get("name")
    return ChatMessage(
        role=ROLES[role],
        content=text_of(content, f"{at}.content"),
        name=name if isinstance(name, str) else None,
        tool_calls=calls,
        tool_call_id=given.get("tool_call_id") if role == "tool" else None,
    )


def text_of(content: Any, at: str) -> str:
    """Text of a message's content: a string, or parts that are text.

    Raises:
        ApiError: 400: it holds anything else.

    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refusal(at, f"{at} must be a string or an array of parts")
    return "".join(_part(part, f"{at}[{index}]") for index, part in enumerate(content))


def _part(part: Any, at: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in _TEXTS:
        raise refusal(f"{at}.type", f"{at}: the model reads text only, not {kind!r}")
    text = part.get(_TEXTS[kind])
    if not isinstance(text, str):
        raise refusal(f"{at}.{_TEXTS[kind]}", f"{at}.{_TEXTS[kind]} must be a string")
    return text


def _calls(given: Any, at: str) -> list[ToolCall] | None:
    if not given:
        return None
    try:
        calls = msgspec.convert(given, type=list[_Call])
    except msgspec.ValidationError as error:
        raise refusal(at, f"{at}: {error}") from None
    return [
        ToolCall(
            id=call.id,
            name=call.function.name,
            arguments=arguments(call.function.arguments, f"{at}[{index}].function.arguments"),
        )
        for index, call in enumerate(calls)
    ]


def arguments(given: Any, at: str) -> dict[str, Any]:
    """Arguments of a call, which travel as JSON in a string.

    Raises:
        ApiError: 400: they are no JSON object.

    """
    if isinstance(given, dict):
        return given
    try:
        value = msgspec.json.decode(given or "{}") if isinstance(given, str) else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise refusal(at, f"{at} must be a JSON object in a string")
    return fits(value, at)

"""``/v1/responses``: requests in. Pure; `response` has what becomes of them."""

from __future__ import annotations

from typing import Any

import msgspec

from app.events.catalogue import ChatMessage, RequestQueued, SamplingParams, ToolCall
from app.events.ids import uuid7
from app.transport.openai.chat import MAX_TOP
from app.transport.openai.errors import ApiError, refusal, renamed
from app.transport.openai.params import Sampling, sampling, template_variables, unsupported
from app.transport.openai.prompts import arguments, message, text_of
from app.transport.openai.structured import structured
from app.transport.openai.tools import Choice, Tools, tools

__all__ = ["Past", "ResponseBody", "called", "gave", "plan", "turns"]

_NAMES = {
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "max_tokens": "max_output_tokens",
}
SCORES = "message.output_text.logprobs"
"""What ``include`` has to name for log probabilities."""


class Named(msgspec.Struct, frozen=True):
    """A conversation by its id."""

    id: str


class ResponseBody(Sampling, kw_only=True):
    """The body of a request."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | Named | None = None
    background: bool = False
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | Choice | None = None
    parallel_tool_calls: bool = True
    text: dict[str, Any] | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Past(msgspec.Struct, frozen=True):
    """What was said before: turns without instructions, and the thread that they are of."""

    turns: list[ChatMessage] = []
    thread: str | None = None


def plan(
    body: ResponseBody, past: Past, *, deadline: int | None, origin: dict[str, Any]
) -> RequestQueued:
    """Translate a request.

    Raises:
        ApiError: 400: a field is not as it should be.

    """
    if body.n != 1:
        raise refusal("n", "a response is one answer")
    if body.prompt_logprobs is not None:
        raise unsupported("prompt_logprobs")
    offered = tools(body.tools, body.tool_choice, parallel=body.parallel_tool_calls)
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= MAX_TOP:
        raise refusal("top_logprobs", f"top_logprobs must be between 0 and {MAX_TOP}")
    scored = bool(body.top_logprobs) or SCORES in (body.include or ())
    new = turns(body.input)
    params = _params(body, offered, scored)
    first = [ChatMessage(role="system", content=body.instructions)] if body.instructions else []
    kept = {
        "previous_response_id": body.previous_response_id,
        "thread": past.thread,
        "instructions": body.instructions,
        "background": body.background or None,
        "text": body.text,
        "tool_choice": _choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "tools": body.tools,
        "forced": offered.forced or None,
        "history": len(past.turns) or None,
    }
    return RequestQueued(
        request=uuid7(),
        params=params,
        model=body.model,
        messages=[*first, *past.turns, *new],
        priority=-body.priority,
        deadline=deadline,
        salt=body.cache_salt,
        tools=offered.offered or None,
        template=template_variables(body.chat_template_kwargs or {}),
        metadata={
            "endpoint": "responses",
            **origin,
            **{name: value for name, value in kept.items() if value is not None},
        },
    )


def _params(body: ResponseBody, offered: Tools, scored: bool) -> SamplingParams:
    try:
        return sampling(
            body,
            max_tokens=body.max_output_tokens,
            logprobs=(body.top_logprobs or 0) if scored else None,
            structured=structured(
                (body.text or {}).get("format"), body.structured_outputs, offered
            ),
        )
    except ApiError as error:
        raise renamed(error, _NAMES) from None


def _choice(given: str | Choice | None) -> Any:
    if not isinstance(given, Choice):
        return given
    name = given.name or (given.function or {}).get("name")
    return {"type": "function", "name": name}


def turns(given: str | list[dict[str, Any]]) -> list[ChatMessage]:
    """Turns of a prompt out of ``input``: a user's text, or items.

    Raises:
        ApiError: 400: an item cannot be read.

    """
    if isinstance(given, str):
        return [ChatMessage(role="user", content=given)]
    if not given:
        raise refusal("input", "input must not be empty")
    found: list[ChatMessage] = []
    for index, item in enumerate(given):
        _add(found, item, f"input[{index}]")
    return found


def _add(found: list[ChatMessage], item: dict[str, Any], at: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        found.append(message(item, at))
    elif kind == "function_call":
        call = called(item, at)
        last = found[-1] if found else None
        if last is not None and last.role == "assistant":  # one turn may have said and called
            calls = [*(last.tool_calls or ()), call]
            found[-1] = msgspec.structs.replace(last, tool_calls=calls)
        else:
            found.append(ChatMessage(role="assistant", content="", tool_calls=[call]))
    elif kind == "function_call_output":
        id, content = gave(item, at)
        found.append(ChatMessage(role="tool", content=content, tool_call_id=id))
    elif kind != "reasoning":  # what a model thought is not shown to it again
        raise refusal(f"{at}.type", f"{at}: an item of type {kind!r} is not supported")


def gave(item: dict[str, Any], at: str) -> tuple[str, str]:
    """Id of the call that an item has the output of, and the output.

    Raises:
        ApiError: 400: it cannot be read.

    """
    if not isinstance(item.get("call_id"), str):
        raise refusal(f"{at}.call_id", f"{at}.call_id is missing")
    return item["call_id"], text_of(item.get("output"), f"{at}.output")


def called(item: dict[str, Any], at: str) -> ToolCall:
    """The call that an item is.

    Raises:
        ApiError: 400: it cannot be read.

    """
    for key in ("call_id", "name"):
        if not isinstance(item.get(key), str):
            raise refusal(f"{at}.{key}", f"{at}.{key} is missing")
    given = arguments(item.get("arguments") or "{}", f"{at}.arguments")
    return ToolCall(id=item["call_id"], name=item["name"], arguments=given)

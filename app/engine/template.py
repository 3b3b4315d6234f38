"""Chat templates: messages to a prompt.

A template is code from the model's file, so it runs in jinja2's immutable sandbox. Its own special
tokens must act as such, while the same text inside a message must not. Before rendering, every
special token's text inside a message is broken by a guard, a private-use character that occurs
nowhere in the messages; after rendering, the special tokens that are still whole are the
template's. The guards are taken out again before the text between them is encoded. As messages
stay otherwise as they were, templates may trim, test or join them as they like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import msgspec
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.engine.tokenizer import Tokenizer
from app.engine.tools import knows_tools, spelled_out
from app.errors import InputError, StartupError
from app.events.catalogue import ChatMessage, ToolCall

__all__ = ["ChatTemplate"]

_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PRIVATE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))

Message = ChatMessage | Mapping[str, Any]


class ChatTemplate:
    """The chat template of a model.

    Args:
        source: Jinja source, or None: then rendering is refused with an explanation.
        tokenizer: Of the same model.

    """

    def __init__(self, source: str | None, tokenizer: Tokenizer) -> None:
        self.source = source
        self._tokenizer = tokenizer
        self._cut = tuple(t for t in tokenizer.special_texts if len(t) > 1)
        self._longest = max(map(len, self._cut), default=1)
        self._whole = re.compile("|".join(map(re.escape, self._cut)) or "(?!)")

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt as text.

        Raises:
            InputError: the model has no template, a message is malformed, or the template
                refuses the messages.

        """
        plain, tools = self._prepare(messages, tools)
        return self._render(plain, tools, add_generation_prompt, kwargs)

    def encode(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> list[int]:
        """The prompt as token ids. See the module for what becomes special.

        Raises:
            InputError: as ``render``.

        """
        plain, tools = self._prepare(messages, tools)
        guard = _unused(plain, tools)
        guarded = [self._guard(m, guard) for m in plain]
        safe_tools = None if tools is None else [self._guard(t, guard) for t in tools]
        text = self._render(guarded, safe_tools, add_generation_prompt, kwargs)
        if guard not in text:
            return self._tokenizer.encode(text, special=True)
        return self._encode_guarded(text, guard)

    # ------------------------------------------------------------------------- rendering

    def _prepare(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[dict[str, Any]], Sequence[Mapping[str, Any]] | None]:
        """Messages as dicts; tools become text if the template does not know of them."""
        plain = [_as_dict(m, i) for i, m in enumerate(messages)]
        if knows_tools(self.source):
            return plain, tools
        return spelled_out(plain, tools), None

    def _render(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None,
        add_generation_prompt: bool,
        kwargs: Mapping[str, Any],
    ) -> str:
        if self.source is None:
            raise InputError(
                "the model has no chat template",
                field="messages",
                hint="Send plain text instead, or use a model tuned for chat.",
            )
        try:
            given: dict[str, Any] = {
                **kwargs,
                **self._tokenizer.named,
                "messages": messages,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            }
            text: str = self._compiled.render(given)
            return text
        except TemplateError as error:
            raise InputError(
                f"the model's chat template refused: {error}", field="messages"
            ) from None
        except (TypeError, ValueError, KeyError, ArithmeticError) as error:
            raise InputError(
                f"the model's chat template failed: {error}", field="messages"
            ) from error

    @cached_property
    def _compiled(self) -> Any:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], autoescape=False
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            return environment.from_string(self.source or "")
        except TemplateError as error:
            raise StartupError(f"The model's chat template does not compile: {error}") from None

    # -------------------------------------------------------------------------- guarding

    def _guard(self, value: Any, guard: str) -> Any:
        """Break special tokens in every text of a message, whatever its shape."""
        if isinstance(value, str):
            return self._guard_text(value, guard)
        if isinstance(value, Mapping):
            return {k: v if k == "role" else self._guard(v, guard) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._guard(v, guard) for v in value]
        return value

    def _guard_text(self, text: str, guard: str) -> str:
        # again until none is left: tokens may overlap
        while (broken := self._whole.sub(lambda m: m[0][0] + guard + m[0][1:], text)) != text:
            text = broken
        # nor may either end of a text join with what stands beside it to make a token
        sizes = range(1, min(len(text), self._longest - 1) + 1)
        heads = [n - 1 for n in sizes if any(t.endswith(text[:n]) for t in self._cut)]
        tails = [
            len(text) - n + 1 for n in sizes if any(t.startswith(text[-n:]) for t in self._cut)
        ]
        for at in sorted({*heads, *tails}, reverse=True):
            text = text[:at] + guard + text[at:]
        return text

    def _encode_guarded(self, text: str, guard: str) -> list[int]:
        ids: list[int] = []
        at = 0
        for start, end, special in self._tokenizer.specials(text):
            ids += self._tokenizer.encode(text[at:start].replace(guard, ""))
            ids.append(special)
            at = end
        return ids + self._tokenizer.encode(text[at:].replace(guard, ""))


def _as_dict(message: Message, index: int) -> dict[str, Any]:
    if isinstance(message, ChatMessage):
        plain: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name is not None:
            plain["name"] = message.name
        if message.tool_calls:
            plain["tool_calls"] = [_call(call) for call in message.tool_calls]
        if message.tool_call_id is not None:
            plain["tool_call_id"] = message.tool_call_id
    else:
        plain = dict(message)
    role = plain.get("role")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise InputError(
            f"must be a word of letters, digits, '_', '.' or '-', not {role!r}",
            field=f"messages[{index}].role",
        )
    return plain


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _unused(*values: Any) -> str:
    """A private-use character that occurs in none of the values."""
    text = msgspec.json.encode(values).decode()
    return next(chr(c) for c in _PRIVATE if chr(c) not in text)


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    # not jinja2's own filter, which escapes for HTML
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise(message: str) -> None:
    raise TemplateError(message)

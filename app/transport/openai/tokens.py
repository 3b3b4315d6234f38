"""``/tokenize`` and ``/detokenize``. Pure, given the model's tokenizer."""

from __future__ import annotations

from typing import Any

import msgspec

from app.engine.template import ChatTemplate
from app.engine.tokenizer import Tokenizer
from app.events.catalogue import RequestQueued
from app.transport.openai.errors import refusal
from app.transport.openai.params import template_variables
from app.transport.openai.prompts import messages
from app.transport.openai.tools import tools

__all__ = ["DetokenizeBody", "TokenizeBody", "detokenize", "prompt_ids", "tokenize"]


class TokenizeBody(msgspec.Struct, kw_only=True):
    """Text, or messages that the chat template makes a prompt of."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """Token ids."""

    tokens: list[int]
    model: str | None = None


def tokenize(body: TokenizeBody, tokenizer: Tokenizer, context: int | None) -> dict[str, Any]:
    """Token ids of a text, in which control tokens count as such, or of messages.

    Raises:
        ApiError: 400: neither is given, or both.
        InputError: The template refuses the messages.

    """
    if (body.prompt is None) == (body.messages is None):
        raise refusal("prompt", "exactly one of prompt and messages must be given")
    if body.messages is None:
        ids = tokenizer.encode(body.prompt or "", special=True)
    else:
        template = ChatTemplate(tokenizer.chat_template, tokenizer)
        ids = template.encode(
            messages(body.messages),
            tools=tools(body.tools, None).offered or None,
            add_generation_prompt=body.add_generation_prompt,
            **template_variables(body.chat_template_kwargs or {}),
        )
    found: dict[str, Any] = {"count": len(ids), "max_model_len": context, "tokens": ids}
    if body.return_token_strs:
        found["token_strs"] = [tokenizer.decode([each], skip_special=False) for each in ids]
    return found


def prompt_ids(request: RequestQueued, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a request's prompt, as its worker makes them.

    Raises:
        InputError: The template refuses the messages.

    """
    if request.prompt is not None:
        return request.prompt
    if request.messages is None:
        return tokenizer.encode(request.text or "")
    variables = dict(request.template)
    begin = bool(variables.pop("add_generation_prompt", True))
    return ChatTemplate(tokenizer.chat_template, tokenizer).encode(
        request.messages, tools=request.tools, add_generation_prompt=begin, **variables
    )


def detokenize(body: DetokenizeBody, tokenizer: Tokenizer) -> dict[str, Any]:
    """Text of token ids, control tokens included.

    Raises:
        ApiError: 400: the model has no such token.

    """
    size = tokenizer.vocab_size
    wrong = next((token for token in body.tokens if not 0 <= token < size), None)
    if wrong is not None:
        raise refusal("tokens", f"token ids are 0 to {size - 1}, not {wrong}")
    return {"prompt": tokenizer.decode(body.tokens, skip_special=False)}

"""Which fields of a request are used, which change nothing, and which are refused by name.

Every other field is passed over, and named in the response header ``x-everlog-ignored``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from app.transport.openai.errors import ApiError, refusal

__all__ = ["IGNORED", "REFUSED", "Metadata", "fits", "misshapen", "parse", "plain"]

#: Fields that clients send and that change nothing here, with the reason.
IGNORED: dict[str, str] = {
    "store": "everything is in the log",
    "service_tier": "there is one",
    "prediction": "a hint",
    "prompt_cache_key": "prefixes are found by themselves; cache_salt keeps tenants apart",
    "prompt_cache_retention": "blocks are kept as long as there is room",
    "verbosity": "a hint for OpenAI's own models",
    "reasoning_effort": "use chat_template_kwargs for models that can",
    "reasoning": "use chat_template_kwargs for models that can",
    "return_tokens_as_token_ids": "return_token_ids has them",
    "spaces_between_special_tokens": "texts are what the tokens say",
    "request_id": "ids are the log's",
    "stream_interval": "tokens are sent as they are committed",
    "add_special_tokens": "a chat template adds its own; raw prompts get none",
    "truncation": "prompts are never cut; one that is too long is an error",
    "max_tool_calls": "tools run at the client",
    "include": "there is nothing more to include",
    "text_format": "a client's own",
}

#: Fields that ask for something that is not there, with what to do instead. ``null``, ``false``
#: and empty values ask for nothing.
REFUSED: dict[str, str] = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "audio": "there is no audio output",
    "web_search_options": "there is no web search",
    "best_of": "use n",
    "use_beam_search": "there is no beam search",
    "length_penalty": "there is no beam search",
    "suffix": "there is no filling in",
    "bad_words": "use logit_bias",
    "allowed_token_ids": "use structured_outputs or logit_bias",
    "include_stop_str_in_output": "stop strings are not part of the output",
    "truncate_prompt_tokens": "shorten the prompt before",
    "chat_template": "the template is the model's own; chat_template_kwargs sets its variables",
    "documents": "put documents into a message",
    "continue_final_message": "use /v1/completions with token ids of /tokenize",
    "mm_processor_kwargs": "prompts are text",
    "prompt_embeds": "prompts are text or token ids",
    "thinking_token_budget": "use max_tokens",
    "logits_processors": "use logit_bias",
    "guided_json": "use structured_outputs.json",
    "guided_regex": "use structured_outputs.regex",
    "guided_choice": "use structured_outputs.choice",
    "guided_grammar": "use structured_outputs.grammar",
    "prompt": "prompts kept at OpenAI are not here",
    "context_management": "prompts are never changed",
}

_Key = Annotated[str, Meta(max_length=64)]
_Value = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[dict[_Key, _Value], Meta(max_length=16)]
"""What clients keep with what they make, within OpenAI's limits."""

T = TypeVar("T", bound=msgspec.Struct)
V = TypeVar("V")

_AT = re.compile(r" - at (?P<key>`key` in )?`\$(?:\.)?(?P<path>.*)`$")
_pack = msgspec.msgpack.Encoder().encode
_ENCODED = re.compile(r"[^\x20-\x7e]")


def parse(data: bytes, kind: type[T]) -> tuple[T, list[str]]:
    """Read a request's body; also the names of fields that were passed over.

    Raises:
        ApiError: 400: it is no JSON object of this kind, or asks for something that is refused.

    """
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    known = kind.__struct_fields__
    unused = _screen(value, frozenset(known))
    given = {k: v for k, v in value.items() if k in known and v is not None}
    for name, field in given.items():
        fits(field, name)
    try:
        return msgspec.convert(given, type=kind), unused
    except msgspec.ValidationError as error:
        raise misshapen(str(error)) from None


def fits(value: V, at: str) -> V:
    """Return a value that can travel to the engine; ``at`` is its path, for errors.

    Raises:
        ApiError: 400: it has a number of more than 64 bits, or is nested too deep.

    """
    try:
        _pack(value)
    except OverflowError:
        raise refusal(at, f"{at}: whole numbers may have at most 64 bits") from None
    except RecursionError:
        raise refusal(at, f"{at} is nested too deep") from None
    return value


def _screen(value: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    """Names of fields that nobody reads.

    Raises:
        ApiError: 400: one of them is refused.

    """
    unused = []
    for name, given in value.items():
        if name in known:
            continue
        if name in REFUSED and given not in (None, False, [], {}, ""):
            raise refusal(
                name, f"{name} is not supported: {REFUSED[name]}", code="unsupported_parameter"
            )
        if given is not None:
            unused.append(plain(name))
    return unused


def plain(name: str) -> str:
    """A client's name for something, as a header can have it in a list."""
    return _ENCODED.sub("?", name)[:64].replace(",", "?")


def misshapen(message: str) -> ApiError:
    """Say in our words what msgspec found wrong."""
    found = _AT.search(message)
    path = found["path"].replace("[...]", "") if found else ""  # some value of an object
    what = message[: found.start()] if found else message
    missing = re.fullmatch(r"Object missing required field `(.+)`", what)
    if missing is not None:
        path = f"{path}.{missing[1]}" if path else missing[1]
        return ApiError(400, f"{path} is missing", param=path, code="missing_required_parameter")
    at = f"{path or 'body'}: {'a key: ' if found and found['key'] else ''}"
    return refusal(path or "body", f"{at}{what[:1].lower()}{what[1:]}")

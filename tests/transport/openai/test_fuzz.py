"""Whatever is sent, the answer is a request or an error that says what is wrong: never a bug."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.events.codec import decode, new
from app.transport.openai import chat, completions, embeddings, responses
from app.transport.openai.chat import ChatBody
from app.transport.openai.completions import CompletionBody
from app.transport.openai.embeddings import EmbeddingBody
from app.transport.openai.errors import ApiError
from app.transport.openai.fields import REFUSED, parse
from app.transport.openai.responses import Past, ResponseBody
from app.transport.openai.tokens import TokenizeBody

KEYS = [
    *("role", "content", "type", "text", "name", "function", "parameters", "tool_calls"),
    *("arguments", "id", "call_id", "output", "tool_call_id", "json_schema", "schema", "json"),
    *("choice", "regex", "format", "include_usage", "user", "assistant", "tool"),
]
WORDS = [
    *("user", "system", "assistant", "tool", "function", "auto", "required", "none", "text"),
    *("json_object", "json_schema", "message", "function_call", "function_call_output", "{}"),
    *("input_text", "output_text", "", "\ud800", "{", "1"),
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=8)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=12,
)


def bodies(kind: type[msgspec.Struct], needed: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Bodies in which some fields are anything; what is needed is there more often than not."""
    names = st.sampled_from([*kind.__struct_fields__, *REFUSED, "other"])
    found = st.dictionaries(names, JSON, max_size=4)
    return found.map(lambda some: _encode({**needed, **some})) | found.map(_encode)


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode("utf-8", "replace")


def attempt(data: bytes, kind: type[Any], plan: Any) -> None:
    """What comes of a body: requests that the log keeps, or an error for the client."""
    try:
        body, unused = parse(data, kind)
        requests = plan(body)
    except ApiError as error:
        assert 400 <= error.status < 500
        msgspec.json.encode(error.body())
        return
    assert all(name.isascii() for name in unused)
    for request in requests:
        assert decode(new(request, request=request.request)) == request


MESSAGES = [{"role": "user", "content": "Hello"}]


@given(bodies(ChatBody, {"messages": MESSAGES}))
@settings(max_examples=120, deadline=None)
def test_chat(data: bytes) -> None:
    attempt(data, ChatBody, lambda b: chat.plan(b, deadline=None, origin={}).requests)


@given(bodies(CompletionBody, {"prompt": "Hello"}))
@settings(max_examples=80, deadline=None)
def test_completions(data: bytes) -> None:
    attempt(data, CompletionBody, lambda b: completions.plan(b, deadline=None, origin={}))


@given(bodies(ResponseBody, {"input": "Hello"}))
@settings(max_examples=120, deadline=None)
def test_responses(data: bytes) -> None:
    attempt(data, ResponseBody, lambda b: [responses.plan(b, Past(), deadline=None, origin={})])


@given(bodies(EmbeddingBody, {"input": ["Hello", [1, 2]]}))
@settings(max_examples=80, deadline=None)
def test_embeddings(data: bytes) -> None:
    attempt(data, EmbeddingBody, lambda b: embeddings.plan(b, deadline=None, origin={}))


@given(bodies(TokenizeBody, {"prompt": "Hello"}))
@settings(max_examples=100, deadline=None)
def test_tokenize(data: bytes) -> None:
    attempt(data, TokenizeBody, lambda b: [])


@pytest.mark.parametrize("kind", [ChatBody, CompletionBody, EmbeddingBody, ResponseBody])
@given(data=st.binary(max_size=64))
def test_bytes(kind: type[Any], data: bytes) -> None:
    with pytest.raises(ApiError):
        parse(data, kind)

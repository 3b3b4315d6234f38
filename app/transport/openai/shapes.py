"""What answers look like: the structs that the OpenAPI document is made of.

Answers are put together as plain JSON where they arise; these say what is in them, and the tests
hold the server to it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = [
    "ChatCompletion",
    "Completion",
    "Conversation",
    "Deleted",
    "Detokenized",
    "Embeddings",
    "Error",
    "File",
    "FileBatch",
    "Items",
    "Listed",
    "Model",
    "Models",
    "ResponseObject",
    "Tokenized",
]

Object = dict[str, Any]


class ErrorDetail(msgspec.Struct):
    """What went wrong; ``param`` is the path of the field that is to blame."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct):
    """An error."""

    error: ErrorDetail


class Usage(msgspec.Struct):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int]


class ToolFunction(msgspec.Struct):
    """A function and its arguments, JSON in a string."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: ToolFunction


class Message(msgspec.Struct, omit_defaults=True):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ToolCall] = []


class ChatChoice(msgspec.Struct):
    """One answer."""

    index: int
    message: Message
    logprobs: Object | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(msgspec.Struct):
    """Answers to messages."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(msgspec.Struct):
    """One continuation."""

    index: int
    text: str
    logprobs: Object | None
    finish_reason: Literal["stop", "length"]


class Completion(msgspec.Struct):
    """Continuations of prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class Embedding(msgspec.Struct):
    """A vector, as numbers or in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(msgspec.Struct):
    """Vectors of texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: dict[str, int]


class Model(msgspec.Struct):
    """A model that is loaded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class Models(msgspec.Struct):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


class ResponseObject(msgspec.Struct):
    """A response as it is now."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    conversation: Object | None
    error: Object | None
    incomplete_details: Object | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: Object
    model: str
    output: list[Object]
    parallel_tool_calls: bool
    previous_response_id: str | None
    temperature: float
    text: Object
    tool_choice: str | Object
    tools: list[Object]
    top_p: float
    usage: Object | None


class Items(msgspec.Struct):
    """A page of messages, calls and outputs."""

    object: Literal["list"]
    data: list[Object]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Conversation(msgspec.Struct):
    """A conversation."""

    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: Object


class Deleted(msgspec.Struct):
    """It is not there any more."""

    id: str
    object: str
    deleted: Literal[True]


class File(msgspec.Struct):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str


class FileBatch(msgspec.Struct):
    """A batch."""

    id: str
    object: Literal["batch"]
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    request_counts: dict[str, int]
    metadata: Object | None


class Listed(msgspec.Struct):
    """A page of files or batches."""

    object: Literal["list"]
    data: list[Object]
    has_more: bool


class Tokenized(msgspec.Struct, omit_defaults=True):
    """Token ids."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] = []


class Detokenized(msgspec.Struct):
    """Text."""

    prompt: str

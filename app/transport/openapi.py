"""The OpenAPI 3.1 document of the HTTP surface (``/openapi.json``). Pure.

Bodies are the structs that the server reads, errors and answers those of
`app.transport.openai.shapes` and of the read models.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec

from app import __version__
from app.projections.queries import Span, ThreadRow
from app.projections.state import ThreadState
from app.transport.keys_api import KeyRow, NewKey
from app.transport.openai import shapes as s
from app.transport.openai.batches import BatchBody
from app.transport.openai.chat import ChatBody
from app.transport.openai.completions import CompletionBody
from app.transport.openai.conversations import ConversationBody, ItemsBody, MetadataBody
from app.transport.openai.embeddings import EmbeddingBody
from app.transport.openai.responses import ResponseBody
from app.transport.openai.tokens import DetokenizeBody, TokenizeBody
from app.transport.problem import Problem
from app.transport.protocol import Item

__all__ = ["OPERATIONS", "Operation", "document"]

JSON, PROBLEM, SSE, LINES, TEXT = (
    "application/json",
    "application/problem+json",
    "text/event-stream",
    "application/jsonl",
    "text/plain",
)
_REF = "#/components/schemas/{name}"


class State(msgspec.Struct):
    """Whether the service is well; ``checks`` by part."""

    status: str
    checks: dict[str, str] = {}


class Version(msgspec.Struct):
    """The version of Everlog."""

    version: str


class Threads(msgspec.Struct):
    """Conversations; ``next`` is the ``before`` of the next page."""

    items: list[ThreadRow]
    next: int | None


class Events(msgspec.Struct):
    """Events; ``next`` is the ``after`` of the next page."""

    items: list[Item]
    next: int | None


class Spans(msgspec.Struct):
    """What took time."""

    spans: list[Span]


class KeyRows(msgspec.Struct):
    """All keys."""

    items: list[KeyRow]


class Operation(msgspec.Struct, frozen=True):
    """One method of one path.

    Attributes:
        about: What it does.
        answer: Struct of a good answer; None: no JSON.
        body: Struct of the request's body.
        query: Parameters, name to schema.
        media: Other media types of a good answer.
        status: Of a good answer.
        form: The body is a form with a file.

    """

    about: str
    answer: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    query: dict[str, dict[str, Any]] = {}
    media: tuple[str, ...] = ()
    status: int = 200
    form: bool = False


def _whole(least: int, most: int = 2**53 - 1) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


_PAGE: dict[str, dict[str, Any]] = {
    "order": {"enum": ["asc", "desc"]},
    "after": {"type": "string"},
    "limit": _whole(1, 100),
}
_INCLUDE = {"include": {"type": "array", "items": {"type": "string"}}}
_STREAM: dict[str, dict[str, Any]] = {
    "stream": {"enum": ["true", "false"]},
    "starting_after": _whole(0, 10**9),
}

#: Every operation, by path and method.
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("GET", "/v1/models"): Operation("The models that are loaded", s.Models),
    ("GET", "/v1/models/{model}"): Operation("One model", s.Model),
    ("POST", "/v1/chat/completions"): Operation(
        "Answer messages", s.ChatCompletion, ChatBody, media=(SSE,)
    ),
    ("POST", "/v1/completions"): Operation(
        "Continue prompts", s.Completion, CompletionBody, media=(SSE,)
    ),
    ("POST", "/v1/embeddings"): Operation("Vectors of texts", s.Embeddings, EmbeddingBody),
    ("POST", "/v1/responses"): Operation(
        "Answer, and keep the answer", s.ResponseObject, ResponseBody, media=(SSE,)
    ),
    ("GET", "/v1/responses/{id}"): Operation(
        "A response as it is now, or its events", s.ResponseObject, query=_STREAM, media=(SSE,)
    ),
    ("DELETE", "/v1/responses/{id}"): Operation("Stop and hide a response", s.Deleted),
    ("POST", "/v1/responses/{id}/cancel"): Operation("Stop a response", s.ResponseObject),
    ("GET", "/v1/responses/{id}/input_items"): Operation(
        "What a response was asked", s.Items, query=_PAGE
    ),
    ("POST", "/v1/conversations"): Operation(
        "Begin a conversation", s.Conversation, ConversationBody
    ),
    ("GET", "/v1/conversations/{id}"): Operation("One conversation", s.Conversation),
    ("POST", "/v1/conversations/{id}"): Operation(
        "Replace its metadata", s.Conversation, MetadataBody
    ),
    ("DELETE", "/v1/conversations/{id}"): Operation("Hide a conversation", s.Deleted),
    ("GET", "/v1/conversations/{id}/items"): Operation(
        "What was said in it", s.Items, query=_PAGE | _INCLUDE
    ),
    ("POST", "/v1/conversations/{id}/items"): Operation("Add items", s.Items, ItemsBody),
    ("GET", "/v1/conversations/{id}/items/{item}"): Operation("One item"),
    ("DELETE", "/v1/conversations/{id}/items/{item}"): Operation("Remove an item", s.Conversation),
    ("POST", "/v1/files"): Operation("Keep a file", s.File, form=True),
    ("GET", "/v1/files"): Operation("The files", s.Listed, query={"purpose": {"type": "string"}}),
    ("GET", "/v1/files/{id}"): Operation("What a file is", s.File),
    ("GET", "/v1/files/{id}/content"): Operation("What is in it", media=(LINES,)),
    ("DELETE", "/v1/files/{id}"): Operation("Forget a file", s.Deleted),
    ("POST", "/v1/batches"): Operation("Begin a batch", s.FileBatch, BatchBody),
    ("GET", "/v1/batches"): Operation("The batches", s.Listed),
    ("GET", "/v1/batches/{id}"): Operation("One batch", s.FileBatch),
    ("POST", "/v1/batches/{id}/cancel"): Operation("Stop a batch", s.FileBatch),
    ("POST", "/tokenize"): Operation("Token ids of a text", s.Tokenized, TokenizeBody),
    ("POST", "/detokenize"): Operation("Text of token ids", s.Detokenized, DetokenizeBody),
    ("GET", "/healthz"): Operation("Whether the process answers", State),
    **{
        ("GET", path): Operation("Whether the service is ready", State)
        for path in ("/readyz", "/health", "/ping")
    },
    ("GET", "/version"): Operation("The version", Version),
    ("GET", "/metrics"): Operation("What Prometheus scrapes", media=(TEXT,)),
    ("GET", "/openapi.json"): Operation("This document"),
    ("GET", "/api/info"): Operation("What this server is"),
    ("GET", "/api/threads"): Operation(
        "The conversations, latest first",
        Threads,
        query={"limit": _whole(1, 200), "before": _whole(0), "search": {"type": "string"}},
    ),
    ("GET", "/api/threads/{thread}"): Operation(
        "A conversation, now or at a position of the log", ThreadState, query={"at": _whole(0)}
    ),
    ("GET", "/api/threads/{thread}/timeline"): Operation("Where its time went", Spans),
    ("GET", "/api/threads/{thread}/events"): Operation(
        "Its events", Events, query={"after": _whole(0), "limit": _whole(1, 2000)}
    ),
    ("GET", "/api/keys"): Operation("The API keys", KeyRows),
    ("POST", "/api/keys"): Operation("Make an API key", KeyRow, NewKey, status=201),
    ("DELETE", "/api/keys/{key}"): Operation("Revoke an API key", KeyRow),
}


@functools.cache
def document() -> bytes:
    """The document as JSON."""
    structs: list[type[msgspec.Struct]] = [s.Error, Problem]
    for each in OPERATIONS.values():
        structs += [struct for struct in (each.answer, each.body) if struct is not None]
    kinds = list(dict.fromkeys(structs))
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    known = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), each in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, each, known)
    return msgspec.json.encode(
        {
            "openapi": "3.1.1",
            "info": {"title": "Everlog", "version": __version__},
            "security": [{}, {"key": []}],
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _operation(
    method: str, path: str, each: Operation, known: dict[type[msgspec.Struct], Any]
) -> dict[str, Any]:
    named = re.findall(r"{(\w+)}", path)
    found: dict[str, Any] = {
        "summary": each.about,
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").rstrip("_"),
        "parameters": [
            *({"name": n, "in": "path", "required": True, "schema": _ID} for n in named),
            *({"name": n, "in": "query", "schema": q} for n, q in each.query.items()),
        ],
        "responses": _answers(path, each, known),
    }
    if each.body is not None:
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": known[each.body]}}}
    elif each.form:
        found["requestBody"] = {
            "required": True,
            "content": {"multipart/form-data": {"schema": _FORM}},
        }
    return found


_ID = {"type": "string", "minLength": 1}
_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"const": "batch"},
    },
}


def _answers(
    path: str, each: Operation, known: dict[type[msgspec.Struct], Any]
) -> dict[str, dict[str, Any]]:
    content: dict[str, Any] = {media: {} for media in each.media}
    if each.answer is not None:
        content = {JSON: {"schema": known[each.answer]}, **content}
    content = content or {JSON: {"schema": {"type": "object"}}}
    ours = path.startswith("/api/")
    error = {PROBLEM: {"schema": known[Problem]}} if ours else {JSON: {"schema": known[s.Error]}}
    if each.answer is State:  # says the same when it is not
        error = content
    return {
        str(each.status): {"description": each.about, "content": content},
        "default": {"description": "It cannot be had", "content": error},
    }

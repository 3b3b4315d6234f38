"""Lines of a batch, in OpenAI's format: requests in, results out. Pure.

A line is ``{"custom_id", "method": "POST", "url", "body"}``, its result ``{"id", "custom_id",
"response": {"status_code", "request_id", "body"}, "error"}``. A request that the API would refuse
has a response that says so; ``error`` is for what never became a request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from app.events.catalogue import RequestQueued
from app.transport.openai import chat, completions, embeddings, responses
from app.transport.openai.errors import ApiError, refusal
from app.transport.openai.fields import misshapen, parse
from app.transport.openai.logprobs import Spell
from app.transport.openai.params import StreamOptions, sender
from app.transport.openai.reply import Answer
from app.transport.openai.response import ResponseAnswer

__all__ = [
    "ENDPOINTS",
    "PRIORITY",
    "Line",
    "Planned",
    "answered",
    "failure",
    "named",
    "plan",
    "read",
    "success",
    "undone",
    "unread",
]

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
"""What the lines of a batch may ask for."""
PRIORITY = -10
"""Lines give way to everybody who waits for an answer."""
MAX_ID = 512
"""Most characters of a ``custom_id``."""


class _Given(msgspec.Struct):
    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


class Line(msgspec.Struct, frozen=True):
    """A line as it was read; ``number`` counts from 1, ``body`` is JSON."""

    number: int
    custom_id: str
    url: str
    body: bytes


Finish = Callable[[list[RequestQueued], Spell | None, Sequence[Sequence[int]]], Answer]


class Planned(msgspec.Struct, frozen=True):
    """What a line asks of the engine.

    Attributes:
        requests: The engine's requests, at least one.
        answer: Makes the answer of them, given the requests, perhaps under other names, and what
            `app.transport.openai.api.Scoring` has: bytes of tokens and token ids of the prompts,
            if log probabilities or token ids are asked for.
        ids: Whether token ids are.

    """

    requests: list[RequestQueued]
    answer: Finish
    ids: bool = False


def read(text: bytes, number: int, *, url: str | None = None) -> Line:
    """Read a line.

    Args:
        text: Without its end.
        number: Its number.
        url: The only endpoint it may ask for; None: any of `ENDPOINTS`.

    Raises:
        ApiError: 400: it is no request of a batch; ``param`` is the field to blame.

    """
    try:
        given = msgspec.json.decode(text, type=_Given)
    except msgspec.ValidationError as error:
        raise misshapen(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"this is not JSON: {error}", code="invalid_json_line") from None
    if not given.custom_id or len(given.custom_id) > MAX_ID:
        raise refusal("custom_id", f"custom_id must have 1 to {MAX_ID} characters")
    if given.method != "POST":
        raise refusal("method", "method must be POST", code="invalid_method")
    allowed = ENDPOINTS if url is None else (url,)
    if given.url not in allowed:
        raise refusal("url", f"url must be {' or '.join(allowed)}", code="invalid_url")
    body = bytes(given.body)
    if body[:1] != b"{":
        raise refusal("body", "body must be an object")
    return Line(number, given.custom_id, given.url, body)


def plan(
    line: Line,
    choose: Callable[[str | None], tuple[str, str | None]],
    *,
    created: int,
    deadline: int | None = None,
    origin: dict[str, Any] | None = None,
) -> Planned:
    """Translate a line.

    Args:
        line: As it was read.
        choose: The model that is named: as clients see it, and as workers do.
        created: Seconds since the epoch.
        deadline: Of its requests, in ns since the epoch.
        origin: What the log keeps of how it came.

    Raises:
        ApiError: A field of the body is not as it should be, or there is no such model.

    """
    kind = _PLANS[line.url]
    body, _ = parse(line.body, kind.body)
    if getattr(body, "stream", False):
        raise refusal("stream", "a line of a batch is answered whole, not as a stream")
    name, body.model = choose(body.model)
    return kind.plan(body, name, created, deadline, sender(body) | (origin or {}))


def named(requests: Sequence[RequestQueued], names: Sequence[str]) -> list[RequestQueued]:
    """The same requests under other names, with the priority of batches."""
    others = {each.request: name for each, name in zip(requests, names, strict=True)}
    return [
        msgspec.structs.replace(
            each,
            request=others[each.request],
            priority=PRIORITY,
            metadata={**each.metadata, "of": others[each.metadata["of"]]}
            if "of" in each.metadata
            else each.metadata,
        )
        for each in requests
    ]


# --------------------------------------------------------------------------------- results


def success(id: str, line: Line, request: str, body: dict[str, Any]) -> dict[str, Any]:
    """Result of a line that was answered; ``request`` is its first request's id."""
    return _result(id, line.custom_id, 200, request, body)


def failure(id: str, line: Line, error: ApiError, request: str | None = None) -> dict[str, Any]:
    """Result of a line that was refused, or whose request failed."""
    return _result(id, line.custom_id, error.status, request or result_id(id), error.body())


def answered(result: dict[str, Any]) -> bool:
    """Whether a result says that its line went well."""
    return result["response"] is not None and result["response"]["status_code"] == 200


def _result(id: str, custom_id: str, status: int, request: str, body: Any) -> dict[str, Any]:
    return {
        "id": result_id(id),
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": request, "body": body},
        "error": None,
    }


def unread(id: str, number: int, error: ApiError) -> dict[str, Any]:
    """Result of a line that cannot be read."""
    about = {"code": error.code, "message": error.message, "param": error.param, "line": number}
    return {"id": result_id(id), "custom_id": None, "response": None, "error": about}


def undone(id: str, line: Line, code: str, message: str) -> dict[str, Any]:
    """Result of a line that was not run to its end."""
    error = {"code": code, "message": message}
    return {"id": result_id(id), "custom_id": line.custom_id, "response": None, "error": error}


def result_id(name: str) -> str:
    """Id of a result, always the same for a name."""
    return "batch_req_" + sha256(name.encode()).hexdigest()[:32]


# ------------------------------------------------------------------------------- endpoints


class _Kind(msgspec.Struct, frozen=True):
    body: type[Any]
    plan: Callable[[Any, str, int, int | None, dict[str, Any]], Planned]


def _chat(
    body: chat.ChatBody, name: str, created: int, deadline: int | None, origin: dict[str, Any]
) -> Planned:
    given = chat.plan(body, deadline=deadline, origin=origin)
    return Planned(
        given.requests,
        lambda requests, spell, prompts: chat.ChatAnswer(
            msgspec.structs.replace(given, requests=requests),
            model=name,
            created=created,
            options=StreamOptions(),
            spell=spell,
            prompts=prompts,
        ),
        ids=given.ids,
    )


def _completion(
    body: completions.CompletionBody,
    name: str,
    created: int,
    deadline: int | None,
    origin: dict[str, Any],
) -> Planned:
    return Planned(
        completions.plan(body, deadline=deadline, origin=origin),
        lambda requests, spell, prompts: completions.CompletionAnswer(
            requests, body, model=name, created=created, spell=spell, prompts=prompts
        ),
        ids=body.return_token_ids,
    )


def _response(
    body: responses.ResponseBody,
    name: str,
    created: int,
    deadline: int | None,
    origin: dict[str, Any],
) -> Planned:
    if body.previous_response_id is not None:
        raise refusal("previous_response_id", "a line of a batch stands alone")
    if body.background:
        raise refusal("background", "a line of a batch is in the background anyway")
    about = {**origin, "model": name}
    return Planned(
        [responses.plan(body, responses.Past(), deadline=deadline, origin=about)],
        lambda requests, spell, _: ResponseAnswer(
            requests[0], model=name, created=created, spell=spell
        ),
    )


def _embedding(
    body: embeddings.EmbeddingBody,
    name: str,
    created: int,
    deadline: int | None,
    origin: dict[str, Any],
) -> Planned:
    encoding = body.encoding_format
    return Planned(
        embeddings.plan(body, deadline=deadline, origin=origin),
        lambda requests, *_: embeddings.EmbeddingAnswer(requests, model=name, encoding=encoding),
    )


_PLANS: dict[str, _Kind] = {
    "/v1/chat/completions": _Kind(chat.ChatBody, _chat),
    "/v1/completions": _Kind(completions.CompletionBody, _completion),
    "/v1/responses": _Kind(responses.ResponseBody, _response),
    "/v1/embeddings": _Kind(embeddings.EmbeddingBody, _embedding),
}

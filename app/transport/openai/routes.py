"""The routes under ``/v1`` and beside it."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from app.errors import EverlogError
from app.transport.openai import chat, completions, embeddings, errors, tokens
from app.transport.openai.api import Api, json
from app.transport.openai.batches import Batches
from app.transport.openai.conversations import Conversations
from app.transport.openai.files import Files
from app.transport.openai.models import chosen, describe, listing
from app.transport.openai.stored import Responses

__all__ = ["routes"]

log = logging.getLogger(__name__)

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

Endpoint = Callable[[Request], Awaitable[Response]]


def routes(api: Api) -> list[Route]:
    """Return the routes of the API; errors on them are OpenAI's."""
    stateless, conversations = _Endpoints(api), Conversations(api)
    responses = Responses(api, conversations)
    files, batches = Files(api), Batches(api)
    found: list[tuple[str, str, Endpoint]] = [
        ("GET", "/v1/models", stateless.models),
        ("GET", "/v1/models/{model:path}", stateless.model),
        ("POST", "/v1/chat/completions", stateless.chat),
        ("POST", "/v1/completions", stateless.completions),
        ("POST", "/v1/embeddings", stateless.embeddings),
        ("POST", "/v1/responses", responses.create),
        ("GET", "/v1/responses/{id}", responses.retrieve),
        ("POST", "/v1/responses/{id}/cancel", responses.cancel),
        ("DELETE", "/v1/responses/{id}", responses.delete),
        ("GET", "/v1/responses/{id}/input_items", responses.items),
        ("POST", "/v1/conversations", conversations.create),
        ("GET", "/v1/conversations/{id}", conversations.retrieve),
        ("POST", "/v1/conversations/{id}", conversations.update),
        ("DELETE", "/v1/conversations/{id}", conversations.delete),
        ("GET", "/v1/conversations/{id}/items", conversations.items),
        ("POST", "/v1/conversations/{id}/items", conversations.add),
        ("GET", "/v1/conversations/{id}/items/{item}", conversations.item),
        ("DELETE", "/v1/conversations/{id}/items/{item}", conversations.remove),
        ("POST", "/v1/files", files.create),
        ("GET", "/v1/files", files.list),
        ("GET", "/v1/files/{id}", files.retrieve),
        ("GET", "/v1/files/{id}/content", files.content),
        ("DELETE", "/v1/files/{id}", files.delete),
        ("POST", "/v1/batches", batches.create),
        ("GET", "/v1/batches", batches.list),
        ("GET", "/v1/batches/{id}", batches.retrieve),
        ("POST", "/v1/batches/{id}/cancel", batches.cancel),
        ("POST", "/tokenize", stateless.tokenize),
        ("POST", "/detokenize", stateless.detokenize),
    ]
    listed = [Route(path, _guarded(call), methods=[method]) for method, path, call in found]
    rest = Route("/v1/{path:path}", _guarded(_nothing), methods=list(METHODS))
    return [*listed, rest]


def _guarded(endpoint: Endpoint) -> Endpoint:
    """The endpoint with errors as OpenAI's clients expect them."""

    async def call(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody
        except Exception as error:
            if not isinstance(error, EverlogError | HTTPException):
                log.exception("%s %s failed", request.method, request.url.path)
            return errors.of(error).response()

    return call


async def _nothing(request: Request) -> Response:
    path = request.url.path
    raise errors.ApiError(404, f"there is no {request.method} {path} here", code="unknown_url")


class _Endpoints:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def models(self, request: Request) -> Response:
        return json(listing(self._api.models()))

    async def model(self, request: Request) -> Response:
        name: str = request.path_params["model"]
        model = chosen(self._api.models(), name)
        if model is None:
            raise errors.ApiError(404, "no model is loaded yet", code="model_not_found")
        return json(describe(model))

    async def chat(self, request: Request) -> Response:
        api = self._api
        body, unused = await api.read(request, chat.ChatBody)
        name, body.model = api.choose(body.model)
        plan = chat.plan(body, deadline=api.deadline(), origin=api.origin(request, body))
        answer = chat.ChatAnswer(
            plan,
            model=name,
            created=int(time.time()),
            options=body.stream_options,
            **await api.scoring(plan.requests, ids=plan.ids),
        )
        return await api.reply(request, plan.requests, answer, stream=body.stream, unused=unused)

    async def completions(self, request: Request) -> Response:
        api = self._api
        body, unused = await api.read(request, completions.CompletionBody)
        name, body.model = api.choose(body.model)
        requests = completions.plan(body, deadline=api.deadline(), origin=api.origin(request, body))
        answer = completions.CompletionAnswer(
            requests,
            body,
            model=name,
            created=int(time.time()),
            **await api.scoring(requests, ids=body.return_token_ids),
        )
        return await api.reply(request, requests, answer, stream=body.stream, unused=unused)

    async def embeddings(self, request: Request) -> Response:
        api = self._api
        body, unused = await api.read(request, embeddings.EmbeddingBody)
        name, body.model = api.choose(body.model)
        requests = embeddings.plan(body, deadline=api.deadline(), origin=api.origin(request, body))
        answer = embeddings.EmbeddingAnswer(requests, model=name, encoding=body.encoding_format)
        kind = embeddings.EmbeddingCall
        return await api.reply(request, requests, answer, stream=False, unused=unused, kind=kind)

    async def tokenize(self, request: Request) -> Response:
        body, unused = await self._api.read(request, tokens.TokenizeBody)
        tokenizer = await self._api.tokenizer(body.model)
        model = chosen(self._api.models(), body.model)
        found = tokens.tokenize(body, tokenizer, model.context if model else None)
        return json(found, unused=unused)

    async def detokenize(self, request: Request) -> Response:
        body, unused = await self._api.read(request, tokens.DetokenizeBody)
        tokenizer = await self._api.tokenizer(body.model)
        return json(tokens.detokenize(body, tokenizer), unused=unused)

"""The endpoints' view of the server: bodies, models, the tokenizer, deadlines, calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.chat.runtime import Runtime
from app.config import Config
from app.engine.frames import Ready
from app.engine.hub import KNOWN, find, known_as
from app.engine.tokenizer import Tokenizer
from app.errors import StartupError
from app.events.catalogue import RequestQueued, WorkerStarted
from app.events.objects import Objects
from app.events.store import EventStore
from app.telemetry import context
from app.transport.auth import Principal, authenticate
from app.transport.openai.active import Active
from app.transport.openai.call import Call
from app.transport.openai.errors import ApiError
from app.transport.openai.fields import parse, plain
from app.transport.openai.library import Shelf
from app.transport.openai.logprobs import Spell
from app.transport.openai.models import Model, chosen
from app.transport.openai.params import sender
from app.transport.openai.reply import Answer, Reply
from app.transport.openai.tokens import prompt_ids

__all__ = ["Api", "Source", "json"]

MAX_BODY = 32 << 20
"""Most bytes of a request's body."""
BODY_SECONDS = 120.0
"""Longest time that it may take to come."""
#: Headers by which Open WebUI says for whom it asks; they are recorded.
FORWARDED = ("x-openwebui-user-id", "x-openwebui-user-name", "x-openwebui-chat-id")
IGNORED = "x-everlog-ignored"

T = TypeVar("T", bound=msgspec.Struct)


class Scoring(TypedDict, total=False):
    """Arguments of an answer that says log probabilities or token ids."""

    spell: Spell
    prompts: list[list[int]]


class Source(Protocol):
    """The server behind the endpoints."""

    @property
    def config(self) -> Config:
        """All settings."""
        ...

    @property
    def store(self) -> EventStore:
        """The log."""
        ...

    @property
    def offered(self) -> list[Ready] | list[WorkerStarted]:
        """The models that are loaded."""
        ...

    @property
    def runtime(self) -> Runtime:
        """Takes the commands of chats."""
        ...

    @property
    def shelf(self) -> Shelf:
        """Files and batches."""
        ...

    @property
    def objects(self) -> Objects:
        """Where files are."""
        ...

    @property
    def calls(self) -> Active:
        """What is under way."""
        ...


class Api:
    """What the endpoints share."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.store = source.store
        self._since = int(time.time())
        self._tokenizers: dict[str, asyncio.Task[Tokenizer]] = {}

    async def read(self, request: Request, kind: type[T]) -> tuple[T, list[str]]:
        """Body of a request; also the names of fields that were passed over.

        Raises:
            ApiError: 400, 408 or 413: it is malformed, does not come, or is too long.

        """
        self.source.calls.admit()
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    parts.append(part)
                    size += len(part)
                    if size > MAX_BODY:
                        message = f"the body is longer than {MAX_BODY} bytes"
                        raise ApiError(413, message, code="too_long")
        except TimeoutError:
            message = f"the body did not come within {BODY_SECONDS:g} seconds"
            raise ApiError(408, message, code="timeout") from None
        return parse(b"".join(parts), kind)

    # ---------------------------------------------------------------------------- models

    def models(self) -> list[Model]:
        """The models that answer now, each once."""
        configured = self.source.config.engine
        found: dict[str, Model] = {}
        for loaded in self.source.offered:
            known = known_as(loaded.model)
            name = known.name if known else loaded.model
            also = (configured.model,) if configured.enabled else ()
            found.setdefault(
                loaded.model, Model(name, loaded.model, loaded.context, self._since, also)
            )
        return list(found.values())

    def choose(self, name: str | None) -> tuple[str, str | None]:
        """The model that a request names: as its sender calls it, and as workers do.

        While no worker is there, any name is taken; the request waits for a worker that has it.

        Raises:
            ApiError: 404: there is no such model.

        """
        model = chosen(self.models(), name)
        if model is not None:
            return name or model.id, model.root
        if not (name or "").isprintable():
            message = f"there is no model {name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        known = KNOWN.get(name or "")
        return name or self.source.config.engine.model, known.path.name if known else name

    async def tokenizer(self, name: str | None) -> Tokenizer:
        """Tokenizer of a model, from its files on this machine; loaded once.

        Raises:
            ApiError: 404: there is no such model; 501: its files are not here.

        """
        public, root = self.choose(name)
        task = self._tokenizers.get(root or "")
        if task is None or (task.done() and task.exception() is not None):
            task = asyncio.ensure_future(
                asyncio.to_thread(Tokenizer.open, self._path(public, root))
            )
            self._tokenizers[root or ""] = task
        try:
            return await asyncio.shield(task)
        except StartupError as error:
            raise ApiError(501, error.message, code="no_tokenizer") from None

    def _path(self, public: str, root: str | None) -> Path:
        configured = self.source.config.engine.model
        own = find(configured)
        if own is not None and root in (None, own.name, configured):
            return own
        known = known_as(root)
        path = known.path if known else None
        if path is None or not path.is_file():
            raise ApiError(
                501,
                f"the files of {public} are not on this machine, so its tokenizer is not either; "
                "name them in the setting engine.model",
                code="no_tokenizer",
            )
        return path

    async def spell(self, name: str | None) -> Spell:
        """Bytes of a model's tokens.

        Raises:
            ApiError: As `tokenizer`.

        """
        return (await self.tokenizer(name)).token_bytes

    async def scoring(self, requests: list[RequestQueued], *, ids: bool = False) -> Scoring:
        """What it takes to say log probabilities of these requests, if they ask for any.

        Args:
            requests: All of one call.
            ids: Whether token ids of the prompts are wanted too.

        Raises:
            ApiError: As `tokenizer`.

        """
        params = requests[0].params
        if params.logprobs is None and params.prompt_logprobs is None and not ids:
            return {}
        tokenizer = await self.tokenizer(requests[0].model)
        found: Scoring = {"spell": tokenizer.token_bytes}
        if params.prompt_logprobs is not None or ids:
            found["prompts"] = [prompt_ids(request, tokenizer) for request in requests]
        return found

    # ----------------------------------------------------------------------------- calls

    def now(self) -> int:
        """Seconds since the epoch."""
        return int(time.time())

    def deadline(self) -> int | None:
        """When a request that comes now must be done, in ns since the epoch."""
        seconds = self.source.config.api.timeout_seconds
        return time.time_ns() + int(seconds * 1e9) if seconds else None

    def origin(self, request: Request, body: Any) -> dict[str, Any]:
        """What the log keeps of how a request came."""
        found = sender(body)
        found |= {name: request.headers[name] for name in FORWARDED if name in request.headers}
        trace = request.headers.get(context.HEADER)
        if context.parse(trace) is not None:
            found[context.HEADER] = trace
        return found

    def admit(self, principal: Principal, requests: Sequence[RequestQueued]) -> None:
        """Go on if nobody is overtaken who must not be.

        Raises:
            ApiError: 403: the key may not go before others.

        """
        if not principal.may("admin") and any(queued.priority > 0 for queued in requests):
            message = "a priority below 0 goes before others; that takes a key with the scope admin"
            raise ApiError(403, message, param="priority", code="insufficient_scope")

    async def reply(
        self,
        request: Request,
        call: list[RequestQueued],
        answer: Answer,
        *,
        stream: bool,
        unused: list[str],
        kind: type[Call] = Call,
    ) -> Response:
        """Have the engine answer a request.

        Raises:
            ApiError: As `admit`.

        """
        principal = await authenticate(request)
        self.admit(principal, call)
        headers = {"x-request-id": call[0].request, **passed_over(unused)}
        return Reply(
            kind(self.store, call, actor=principal.actor, admission=self.source.runtime.admission),
            answer,
            stream=stream,
            active=self.source.calls,
            headers=headers,
        )


def passed_over(unused: list[str]) -> dict[str, str]:
    """The header that names fields which were passed over."""
    names = ", ".join(plain(name) for name in unused)
    return {IGNORED: names[:1024]} if unused else {}


def json(value: Any, *, status: int = 200, unused: list[str] | None = None) -> Response:
    """A JSON response."""
    return Response(
        msgspec.json.encode(value),
        status_code=status,
        headers=passed_over(unused or []),
        media_type="application/json",
    )

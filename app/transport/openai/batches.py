"""``/v1/batches``: files of requests that are run when there is room for them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.events import catalogue as c
from app.events.ids import public_request, uuid7
from app.transport.auth import authenticate
from app.transport.openai.api import Api, json
from app.transport.openai.errors import ApiError, refusal
from app.transport.openai.fields import Metadata
from app.transport.openai.files import shown
from app.transport.openai.library import Batch, Library, Shelf
from app.transport.openai.lines import ENDPOINTS
from app.transport.openai.paging import page

__all__ = ["BatchBody", "Batches"]

WINDOW = "24h"
WINDOW_NS = 24 * 3600 * 10**9


class BatchBody(msgspec.Struct, kw_only=True):
    """The body of a request."""

    input_file_id: str
    endpoint: str
    completion_window: str = WINDOW
    metadata: Metadata = {}


class Batches:
    """The endpoints under ``/v1/batches``."""

    def __init__(self, api: Api) -> None:
        self._api = api

    @property
    def _shelf(self) -> Shelf:
        return self._api.source.shelf

    async def create(self, request: Request) -> Response:
        """Begin one; its lines are looked at in the background."""
        principal = await authenticate(request)
        body, unused = await self._api.read(request, BatchBody)
        _check(body)
        created = c.BatchCreated(
            batch=uuid7(),
            input=public_request(body.input_file_id),
            endpoint=body.endpoint,
            window=WINDOW,
            expires=time.time_ns() + WINDOW_NS,
            owner=principal.actor,
            metadata=dict(body.metadata),
        )

        def decide(library: Library) -> Sequence[c.Payload]:
            file = library.file(body.input_file_id)
            if file is None or not shown(file.owner, principal):
                message = f"there is no file {body.input_file_id!r}"
                raise refusal("input_file_id", message, code="not_found")
            if file.purpose != "batch":
                raise refusal("input_file_id", f"the purpose of this file is {file.purpose}")
            return [created]

        library = await self._shelf.change(decide, actor=principal.actor)
        return json(library.batches[created.batch].shown(), unused=unused)

    async def list(self, request: Request) -> Response:
        """Batches of the sender, latest first."""
        principal = await authenticate(request)
        library = await self._shelf.look()
        found = [b.shown() for b in library.batches.values() if shown(b.owner, principal)]
        return json(page(found, request.query_params))

    async def retrieve(self, request: Request) -> Response:
        """How far one is."""
        return json((await self._find(request)).shown())

    async def cancel(self, request: Request) -> Response:
        """End one; what is done stays."""
        principal = await authenticate(request)
        id = (await self._find(request)).id

        def decide(library: Library) -> Sequence[c.Payload]:
            state = library.batches[id].state
            if state in ("cancelling", "cancelled"):
                return []
            if state not in ("validating", "in_progress"):
                raise ApiError(409, f"a batch that is {state} cannot be cancelled", code=state)
            return [c.BatchCancelling(batch=id)]

        library = await self._shelf.change(decide, actor=principal.actor)
        return json(library.batches[id].shown())

    async def _find(self, request: Request) -> Batch:
        principal = await authenticate(request)
        public: str = request.path_params["id"]
        batch = (await self._shelf.look()).batch(public)
        if batch is None or not shown(batch.owner, principal):
            raise ApiError(404, f"there is no batch {public!r}", param="id", code="not_found")
        return batch


def _check(body: BatchBody) -> None:
    """Look at the fields of a new batch.

    Raises:
        ApiError: 400: one is not as it should be.

    """
    if body.endpoint not in ENDPOINTS:
        raise refusal("endpoint", f"endpoint must be one of {', '.join(ENDPOINTS)}")
    if body.completion_window != WINDOW:
        raise refusal("completion_window", f"completion_window must be {WINDOW!r}")

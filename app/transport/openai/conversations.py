"""``/v1/conversations``: threads of the log, as OpenAI's clients keep them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.chat.commands import DeleteCommand
from app.chat.errors import Refused
from app.events.catalogue import MessageRemoved, Payload, ThreadCreated, ThreadMetadataChanged
from app.events.codec import new
from app.events.envelope import thread_stream
from app.events.ids import public_thread, uuid7
from app.events.store import NO_STREAM, Append, Appended, Conflict, StoreError
from app.transport.auth import Principal, authenticate
from app.transport.openai.api import Api, json
from app.transport.openai.call import locked
from app.transport.openai.conversation import PREFIX, Conversation, Item, additions
from app.transport.openai.errors import ApiError, refusal
from app.transport.openai.fields import Metadata
from app.transport.openai.paging import listing, page
from app.transport.openai.responses import SCORES

__all__ = [
    "ConversationBody",
    "Conversations",
    "ItemsBody",
    "MetadataBody",
]


class ConversationBody(msgspec.Struct, kw_only=True):
    """A conversation to begin."""

    items: list[dict[str, Any]] = []
    metadata: Metadata = {}


class MetadataBody(msgspec.Struct, kw_only=True):
    """What to keep with a conversation, whole."""

    metadata: Metadata


class ItemsBody(msgspec.Struct, kw_only=True):
    """Items to add."""

    items: list[dict[str, Any]]


class Conversations:
    """The endpoints."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._store = api.store

    async def create(self, request: Request) -> Response:
        """Begin a conversation: a thread of who asks."""
        body, unused = await self._api.read(request, ConversationBody)
        principal = await authenticate(request)
        thread = uuid7()
        created = ThreadCreated(owner=principal.user, metadata=body.metadata)
        payloads = [created, *additions(body.items, None)]
        await self._append(thread, payloads, principal, NO_STREAM)
        return json((await self._load(thread)).body(), unused=unused)

    async def retrieve(self, request: Request) -> Response:
        """One conversation."""
        return json((await self._named(request)).body())

    async def update(self, request: Request) -> Response:
        """Keep other metadata with it."""
        body, unused = await self._api.read(request, MetadataBody)
        principal, found = await authenticate(request), await self._named(request)
        changed = ThreadMetadataChanged(metadata=body.metadata)
        await self._append(found.state.id, [changed], principal)
        found.state.metadata = changed.metadata
        return json(found.body(), unused=unused)

    async def delete(self, request: Request) -> Response:
        """Hide it, and stop what goes on in it; its events stay."""
        self._api.source.calls.admit()
        principal, found = await authenticate(request), await self._named(request)
        command = DeleteCommand(id=uuid7(), thread=found.state.id)
        try:
            await self._api.source.runtime.delete(command, principal.user)
        except Refused as error:
            raise ApiError(503, error.message, code="shutting_down", retry=1) from None
        return json({"id": found.id, "object": "conversation.deleted", "deleted": True})

    async def items(self, request: Request) -> Response:
        """What was said in it."""
        found = await self._named(request)
        return json(page(found.items(), request.query_params))

    async def add(self, request: Request) -> Response:
        """Add items behind those that are there."""
        body, unused = await self._api.read(request, ItemsBody)
        if not body.items:
            raise refusal("items", "items must not be empty")
        principal, found = await authenticate(request), await self._named(request)
        if found.busy:
            raise locked()
        payloads = additions(body.items, found)
        await self._append(found.state.id, payloads, principal, found.state.version)
        before = {item["id"] for item in found.items()}
        after = (await self._load(found.state.id)).items()
        return json(listing([item for item in after if item["id"] not in before]), unused=unused)

    async def item(self, request: Request) -> Response:
        """One item."""
        found = await self._named(request)
        return json(_item(found, request))

    async def remove(self, request: Request) -> Response:
        """Take an item out of the conversation; the log keeps that it was there."""
        self._api.source.calls.admit()
        principal, found = await authenticate(request), await self._named(request)
        target = found.removal(_item(found, request)["id"])
        assert target is not None
        await self._append(found.state.id, [MessageRemoved(message=target)], principal)
        return json(found.body())

    # ----------------------------------------------------------------------------- parts

    async def find(
        self, public: str, principal: Principal, *, scores: bool = False
    ) -> Conversation:
        """A conversation by its id; with ``scores`` it has the log probabilities of responses.

        Raises:
            ApiError: 404: there is none that is the sender's.

        """
        thread = public_thread(public) if public.startswith(PREFIX) else None
        found = await self._load(thread, scores=scores) if thread is not None else None
        if found is None or found.state.deleted or found.state.owner != principal.user:
            raise ApiError(404, f"there is no conversation {public[:100]!r}", code="not_found")
        return found

    async def _named(self, request: Request) -> Conversation:
        scores = SCORES in (
            *request.query_params.getlist("include"),
            *request.query_params.getlist("include[]"),
        )
        principal = await authenticate(request)
        return await self.find(request.path_params["id"], principal, scores=scores)

    async def _load(self, thread: str, *, scores: bool = False) -> Conversation:
        events = [event async for event in self._store.read(stream=thread_stream(thread))]
        found = Conversation(thread, events)
        if not (scores and found.scored):
            return found
        spells = {model: await self._api.spell(model) for model in found.scored}
        return Conversation(thread, events, spells)

    async def _append(
        self, thread: str, payloads: Sequence[Payload], principal: Principal, expected: int = -1
    ) -> None:
        if not payloads:  # all items were of a kind that is not kept
            return
        events = [new(payload, actor=principal.actor) for payload in payloads]
        outcome = await self._store.append(
            Append(stream=thread_stream(thread), events=events, expected=expected)
        )
        if isinstance(outcome, Conflict):
            raise locked()
        if not isinstance(outcome, Appended):
            raise StoreError(f"the log refused to take it: {outcome}")


def _item(found: Conversation, request: Request) -> Item:
    id: str = request.path_params["item"]
    for item in found.items():
        if item["id"] == id:
            return item
    raise ApiError(404, f"there is no item {id[:100]!r} in this conversation", code="not_found")

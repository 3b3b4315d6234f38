"""Responses out of the log: found again, followed, cancelled, continued, deleted."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.events.catalogue import (
    ChatMessage,
    MessageStarted,
    RequestCancelled,
    RequestQueued,
    ResponseDeleted,
)
from app.events.codec import decode, new
from app.events.envelope import Event, request_stream, thread_stream
from app.events.ids import is_id, public_id, public_request, public_thread, uuid7
from app.events.store import Append
from app.transport.auth import Principal, authenticate
from app.transport.openai.api import Api, json, passed_over
from app.transport.openai.call import FOLLOWED, Call, Place, locked
from app.transport.openai.conversation import Conversation, additions, message_item
from app.transport.openai.conversations import Conversations
from app.transport.openai.errors import ApiError, refusal
from app.transport.openai.paging import page
from app.transport.openai.reply import Reply
from app.transport.openai.response import PREFIX, ResponseAnswer, said
from app.transport.openai.responses import Named, Past, ResponseBody, plan

__all__ = ["Responses"]

FIRST = ("request.queued", "response.deleted")


class Found(msgspec.Struct, frozen=True):
    """A request that a response belongs to, and the event that queued it."""

    queued: RequestQueued
    event: Event

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(stream=self.event.stream, version=self.event.version - 1)


class Responses:
    """The endpoints under ``/v1/responses``."""

    def __init__(self, api: Api, conversations: Conversations) -> None:
        self._api = api
        self._store = api.store
        self._conversations = conversations

    async def create(self, request: Request) -> Response:
        """Answer, now or in the background."""
        api = self._api
        body, unused = await api.read(request, ResponseBody)
        principal = await authenticate(request)
        name, body.model = api.choose(body.model)
        within = await self._within(body, principal)
        past = await self._past(body.previous_response_id, principal)
        if within is not None:
            past = Past(within.turns(), within.state.id)
        origin = {**api.origin(request, body), "model": name}
        queued = plan(body, past, deadline=api.deadline(), origin=origin)
        spell = await api.spell(body.model) if queued.params.logprobs is not None else None
        answer = ResponseAnswer(queued, model=name, created=api.now(), spell=spell)
        api.admit(principal, [queued])
        call = Call(
            self._store,
            [queued],
            actor=principal.actor,
            admission=api.source.runtime.admission,
            detached=body.background,
            place=_place(body, queued, within, principal.actor) if within else None,
        )
        if body.background and not body.stream:
            await call.queue()
            return json(answer.body(), unused=unused)
        headers = {"x-request-id": queued.request, **passed_over(unused)}
        return Reply(call, answer, stream=body.stream, active=api.source.calls, headers=headers)

    async def retrieve(self, request: Request) -> Response:
        """A response as it is now; as a stream, from any event of it on."""
        found = await self._find(request)
        if request.query_params.get("stream") != "true":
            return json((await self._load(found)).body())
        after = request.query_params.get("starting_after", "-1")
        if not _whole(after.removeprefix("-")):
            raise refusal("starting_after", "starting_after must be a whole number")
        answer = await self._answer(found, after=int(after))
        call = self._again(found)
        return Reply(call, answer, stream=True, active=self._api.source.calls, headers={})

    async def cancel(self, request: Request) -> Response:
        """Stop it; one that has ended stays as it is."""
        principal = await authenticate(request)
        found = await self._find(request)
        return json((await self._stop(found, principal)).body())

    async def delete(self, request: Request) -> Response:
        """Stop it, and show it no more. In a conversation, what it said stays."""
        principal = await authenticate(request)
        found = await self._find(request)
        await self._stop(found, principal)
        id = found.queued.request
        event = new(ResponseDeleted(request=id), actor=principal.actor, request=id)
        await self._store.append(Append(stream=found.event.stream, events=[event]))
        public: str = request.path_params["id"]
        return json({"id": public, "object": "response", "deleted": True})

    async def items(self, request: Request) -> Response:
        """What a response was asked."""
        found = await self._find(request)
        turns = _turns(found.queued)[found.queued.metadata.get("history", 0) :]
        base = public_id("", found.queued.request)
        listed = [item for index, turn in enumerate(turns) for item in _items(turn, base, index)]
        return json(page(listed, request.query_params))

    # ----------------------------------------------------------------------------- parts

    async def _find(self, request: Request) -> Found:
        return await self._get(request.path_params["id"], await authenticate(request))

    async def _get(self, public: str, principal: Principal) -> Found:
        """The request behind the id of a response.

        Raises:
            ApiError: 404: there is none that this sender may see.

        """
        id = public_request(public)
        if public.startswith(PREFIX) and is_id(id):
            thread = public_thread(public)
            stream = thread_stream(thread) if thread else request_stream(id)
            events = [
                event
                async for event in self._store.read(stream=stream, types=FIRST)
                if event.request == id
            ]
            queued = decode(events[0]) if len(events) == 1 else None
            if isinstance(queued, RequestQueued) and _shown(events[0], queued, principal):
                return Found(queued, events[0])
        raise ApiError(404, f"there is no response {public[:100]!r}", code="not_found")

    async def _answer(self, found: Found, *, after: int = -1) -> ResponseAnswer:
        queued = found.queued
        scored = queued.params.logprobs is not None
        return ResponseAnswer(
            queued,
            model=queued.metadata.get("model") or queued.model or "",
            created=found.event.time // 10**9,
            after=after,
            spell=await self._api.spell(queued.model) if scored else None,
        )

    def _again(self, found: Found) -> Call:
        """A call that is in the log already."""
        return Call(
            self._store,
            [found.queued],
            actor="system",
            detached=True,
            queued_before=True,
            place=found.place,
        )

    async def _load(self, found: Found) -> ResponseAnswer:
        """The response as the log has it now."""
        answer, call = await self._answer(found), self._again(found)

        async def feed(index: int, payload: Any) -> None:
            answer.feed(index, payload)

        after, stream = found.event.version, found.event.stream
        try:
            async for event in self._store.read(after=after, stream=stream, types=FOLLOWED):
                if await call.told(event, feed):
                    break
        except ApiError as error:
            answer.broken(error)
        return answer

    async def _stop(self, found: Found, principal: Principal) -> ResponseAnswer:
        """Cancel it if it has not ended; returns it as it is then."""
        answer = await self._load(found)
        if answer.status not in ("queued", "in_progress"):
            return answer
        id = found.queued.request
        text = "".join(turn.content for turn in said(answer.output))
        event = new(RequestCancelled(request=id, text=text), actor=principal.actor, request=id)
        await self._store.append(Append(stream=found.event.stream, events=[event]))
        return await self._load(found)

    async def _within(self, body: ResponseBody, principal: Principal) -> Conversation | None:
        """The conversation that a response is to be in.

        Raises:
            ApiError: 400, 404, 409: another response is named too, there is no such conversation,
                or something is being said in it.

        """
        given = body.conversation
        if given is None:
            return None
        if body.previous_response_id is not None:
            raise refusal("conversation", "give previous_response_id or conversation, not both")
        id = given.id if isinstance(given, Named) else given
        try:
            found = await self._conversations.find(id, principal)
        except ApiError as error:
            raise ApiError(404, error.message, param="conversation", code=error.code) from None
        if found.busy:
            raise locked()
        return found

    async def _past(self, previous: str | None, principal: Principal) -> Past:
        """What was said up to the end of a response.

        Raises:
            ApiError: 400: it has not ended, or there is none.

        """
        if previous is None:
            return Past()
        try:
            found = await self._get(previous, principal)
        except ApiError as error:
            raise refusal("previous_response_id", error.message, code="not_found") from None
        answer = await self._load(found)
        if answer.status not in ("completed", "incomplete"):
            raise refusal("previous_response_id", f"response {previous} is {answer.status}")
        return Past([*_turns(found.queued), *said(answer.output)])


def _place(body: ResponseBody, queued: RequestQueued, within: Conversation, actor: str) -> Place:
    """What a response adds to its conversation: its input, and a message for what it says."""
    cause = queued.request
    payloads = additions(body.input, within, name="input")
    events = [new(payload, actor=actor, cause=cause) for payload in payloads]
    message = MessageStarted(message=uuid7(), request=queued.request)
    return Place(
        stream=thread_stream(within.state.id),
        version=within.state.version,
        before=[*events, new(message, actor=actor, cause=cause)],
    )


def _shown(event: Event, queued: RequestQueued, principal: Principal) -> bool:
    mine = event.actor == principal.actor or principal.may("admin")
    return mine and queued.metadata.get("endpoint") == "responses"


def _whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 16


def _turns(queued: RequestQueued) -> list[ChatMessage]:
    """Turns of a request without its instructions, which hold for it alone."""
    turns = queued.messages or []
    return turns[1:] if queued.metadata.get("instructions") else turns


def _items(turn: ChatMessage, base: str, index: int) -> list[dict[str, Any]]:
    """A turn as items: what was said, or given by a tool, and what was called."""
    if turn.role == "tool":
        call = {"call_id": turn.tool_call_id, "output": turn.content}
        head = {"id": f"fco_{base}i{index}", "type": "function_call_output"}
        return [{**head, "status": "completed", **call}]
    calls = [
        {
            "id": f"fc_{base}i{index}c{number}",
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": call.name,
            "arguments": msgspec.json.encode(call.arguments).decode(),
        }
        for number, call in enumerate(turn.tool_calls or ())
    ]
    if calls and not turn.content:
        return calls
    return [message_item(f"msg_{base}i{index}", turn.role, turn.content), *calls]

"""Responses out of the log: found again, followed, cancelled, continued."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.events.catalogue import ChatMessage, RequestCancelled, RequestQueued
from app.events.codec import decode, new
from app.events.envelope import Event, request_stream
from app.events.ids import public_id, public_request
from app.events.store import Append
from app.transport.auth import Principal, authenticate
from app.transport.openai.api import Api, json, passed_over
from app.transport.openai.call import FOLLOWED, Call
from app.transport.openai.errors import ApiError, refusal
from app.transport.openai.reply import Reply
from app.transport.openai.response import PREFIX, ResponseAnswer, said
from app.transport.openai.responses import Past, ResponseBody, plan

__all__ = ["Responses"]


class Found(msgspec.Struct, frozen=True):
    """A request that a response belongs to, and its first event."""

    queued: RequestQueued
    event: Event


class Responses:
    """The endpoints under ``/v1/responses``."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._store = api.store

    async def create(self, request: Request) -> Response:
        """Answer, now or in the background."""
        api = self._api
        body, unused = await api.read(request, ResponseBody)
        principal = await authenticate(request)
        name, body.model = api.choose(body.model)
        past = await self._past(body.previous_response_id, principal)
        origin = {**api.origin(request, body), "model": name}
        queued = plan(body, past, deadline=api.deadline(), origin=origin)
        spell = await api.spell(body.model) if queued.params.logprobs is not None else None
        answer = ResponseAnswer(queued, model=name, created=api.now(), spell=spell)
        call = Call(self._store, [queued], actor=principal.actor, detached=body.background)
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
        if not after.removeprefix("-").isdigit() or len(after) > 16:
            raise refusal("starting_after", "starting_after must be a whole number")
        call = Call(self._store, [found.queued], actor="system", detached=True, queued_before=True)
        answer = await self._answer(found, after=int(after))
        return Reply(call, answer, stream=True, active=self._api.source.calls, headers={})

    async def cancel(self, request: Request) -> Response:
        """Stop it; one that has ended stays as it is."""
        principal = await authenticate(request)
        found = await self._find(request)
        answer = await self._load(found)
        if answer.status in ("queued", "in_progress"):
            id = found.queued.request
            text = "".join(m.content for m in said(answer.output))
            event = new(RequestCancelled(request=id, text=text), actor=principal.actor, request=id)
            await self._store.append(Append(stream=found.event.stream, events=[event]))
            answer = await self._load(found)
        return json(answer.body())

    async def items(self, request: Request) -> Response:
        """What a response was asked."""
        found = await self._find(request)
        turns = _turns(found.queued)[found.queued.metadata.get("history", 0) :]
        listed = [
            _item(turn, f"msg_{public_id('', found.queued.request)}i{index}")
            for index, turn in enumerate(turns)
        ]
        if request.query_params.get("order", "desc") == "desc":
            listed.reverse()
        ids = [item["id"] for item in listed]
        return json(
            {
                "object": "list",
                "data": listed,
                "first_id": ids[0] if ids else None,
                "last_id": ids[-1] if ids else None,
                "has_more": False,
            }
        )

    # ----------------------------------------------------------------------------- parts

    async def _find(self, request: Request) -> Found:
        return await self._get(request.path_params["id"], await authenticate(request))

    async def _get(self, public: str, principal: Principal) -> Found:
        """The request behind the id of a response.

        Raises:
            ApiError: 404: there is none that this sender may see.

        """
        if public.startswith(PREFIX):
            stream = request_stream(public_request(public))
            events = await self._store.fetch(stream=stream, limit=1)
            queued = decode(events[0]) if events else None
            if isinstance(queued, RequestQueued) and _shown(events[0], queued, principal):
                return Found(queued, events[0])
        raise ApiError(404, f"there is no response {public!r}", code="not_found")

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

    async def _load(self, found: Found) -> ResponseAnswer:
        """The response as the log has it now."""
        answer = await self._answer(found)
        call = Call(self._store, [found.queued], actor="system", detached=True, queued_before=True)

        async def feed(index: int, payload: Any) -> None:
            answer.feed(index, payload)

        try:
            async for event in self._store.read(stream=found.event.stream, types=FOLLOWED):
                await call.told(event, feed)
        except ApiError as error:
            answer.broken(error)
        return answer

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


def _shown(event: Event, queued: RequestQueued, principal: Principal) -> bool:
    mine = event.actor == principal.actor or principal.may("admin")
    return mine and queued.metadata.get("endpoint") == "responses"


def _turns(queued: RequestQueued) -> list[ChatMessage]:
    """Turns of a request without its instructions, which hold for it alone."""
    turns = queued.messages or []
    return turns[1:] if queued.metadata.get("instructions") else turns


def _item(turn: ChatMessage, id: str) -> dict[str, Any]:
    if turn.role == "tool":
        call = {"call_id": turn.tool_call_id, "output": turn.content}
        return {"id": id, "type": "function_call_output", "status": "completed", **call}
    kind = "output_text" if turn.role == "assistant" else "input_text"
    content: dict[str, Any] = {"type": kind, "text": turn.content}
    if kind == "output_text":
        content["annotations"] = []
    return {
        "id": id,
        "type": "message",
        "role": turn.role,
        "status": "completed",
        "content": [content],
    }

"""Conversations: threads of the log under ``/v1/conversations``, and responses in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from app.chat.jobs import waits
from app.events.catalogue import (
    ChatMessage,
    MessagePosted,
    RequestFailed,
    RequestQueued,
    RunCompleted,
    RunStarted,
    ThreadCreated,
)
from app.events.codec import decode, new
from app.events.envelope import thread_stream
from app.events.ids import public_id, public_request, public_thread, uuid7
from app.events.store import Append
from app.projections.state import load
from app.transport import keys
from app.transport.server import Service
from tests.transport.openai.test_edge import Stream, Worker, client, settled
from tests.transport.openai.test_responses import work, worker

__all__ = ["client", "worker"]

TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


@pytest.fixture
async def conversation(client: httpx2.AsyncClient) -> AsyncIterator[str]:
    """Path of a conversation in which something was said."""
    body = {"items": [{"role": "user", "content": "Hello"}], "metadata": {"topic": "greeting"}}
    yield f"/v1/conversations/{(await client.post('/v1/conversations', json=body)).json()['id']}"


async def said(client: httpx2.AsyncClient, path: str, **query: str) -> list[tuple[str, str]]:
    """Who said what, or what was called and given, oldest first."""
    query = {"order": "asc", **query}
    found = (await client.get(f"{path}/items", params=query)).json()["data"]
    return [_short(item) for item in found]


def _short(item: dict[str, Any]) -> tuple[str, str]:
    match item["type"]:
        case "message":
            return item["role"], item["content"][0]["text"]
        case "function_call":
            return item["name"], item["arguments"]
        case _:
            return item["call_id"], item["output"]


async def respond(
    client: httpx2.AsyncClient, worker: Worker, path: str, *texts: str, **body: Any
) -> dict[str, Any]:
    """A response in a conversation that says these."""
    asked = {"input": "Go on", "conversation": path.rpartition("/")[2], **body}
    asking = asyncio.create_task(client.post("/v1/responses", json=asked))
    await work(worker, await worker.claim(), *texts)
    made: dict[str, Any] = (await asking).json()
    return made


async def test_it_is_a_thread_of_who_made_it(
    service: Service, client: httpx2.AsyncClient, conversation: str
) -> None:
    made = (await client.get(conversation)).json()
    thread = public_thread(made["id"])
    assert thread is not None and made["object"] == "conversation"
    state = await load(service.store, thread)
    assert state is not None
    assert (state.owner, state.title, state.metadata) == ("local", "Hello", {"topic": "greeting"})
    assert made["created_at"] == state.created // 10**9
    as_handlers_have_it = f"{service.url}/v1/conversations/conv_{thread}"
    assert (await client.get(as_handlers_have_it)).json() == made
    listed = (await client.get(f"{service.url}/api/threads")).json()["items"]
    assert thread in {row["id"] for row in listed}
    assert await said(client, conversation) == [("user", "Hello")]


async def test_metadata_is_replaced_as_a_whole(
    client: httpx2.AsyncClient, conversation: str
) -> None:
    made = (await client.post(conversation, json={"metadata": {"a": "b"}})).json()
    assert made["metadata"] == {"a": "b"} == (await client.get(conversation)).json()["metadata"]
    for wrong in ({"a": 1}, {"a": "x" * 513}, {"a" * 65: ""}):
        answer = await client.post(conversation, json={"metadata": wrong})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "metadata")
    assert (await client.post(conversation, json={})).status_code == 400
    many = {"metadata": {str(n): "" for n in range(17)}}
    assert (await client.post("/v1/conversations", json=many)).status_code == 400
    assert (await client.get(conversation)).json()["metadata"] == {"a": "b"}


async def test_items_are_paged_in_both_orders(
    client: httpx2.AsyncClient, conversation: str
) -> None:
    roles = ["assistant", "system", "developer", "user"]
    added = await client.post(
        f"{conversation}/items",
        json={"items": [{"role": role, "content": role.upper()} for role in roles]},
    )
    assert [_short(item) for item in added.json()["data"]] == [(r, r.upper()) for r in roles]
    whole = [("user", "Hello"), *((role, role.upper()) for role in roles)]
    assert await said(client, conversation) == whole
    assert await said(client, conversation, order="desc") == whole[::-1]
    seen: list[Any] = []
    query: dict[str, str] = {"order": "asc", "limit": "2"}
    while True:
        page = (await client.get(f"{conversation}/items", params=query)).json()
        seen += page["data"]
        if not page["has_more"]:
            break
        query["after"] = page["last_id"]
    assert [_short(item) for item in seen] == whole
    for wrong in ({"order": "up"}, {"limit": "0"}, {"limit": "x"}, {"after": "nothing"}):
        answer = await client.get(f"{conversation}/items", params=wrong)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == next(iter(wrong))


async def test_an_item_is_found_and_removed(
    service: Service, client: httpx2.AsyncClient, conversation: str
) -> None:
    (item,) = (await client.get(f"{conversation}/items")).json()["data"]
    assert (await client.get(f"{conversation}/items/{item['id']}")).json() == item
    left = await client.delete(f"{conversation}/items/{item['id']}")
    assert left.json() == (await client.get(conversation)).json()
    assert await said(client, conversation) == []
    for method in ("GET", "DELETE"):
        answer = await client.request(method, f"{conversation}/items/{item['id']}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    state = await load(service.store, public_thread(conversation.rpartition("/")[2]) or "")
    assert state is not None and state.messages[0].status == "removed"


async def test_a_response_is_added_to_it(
    service: Service, client: httpx2.AsyncClient, worker: Worker, conversation: str
) -> None:
    made = await respond(client, worker, conversation, "Hi", "!", instructions="Be short.")
    assert made["conversation"] == {"id": conversation.rpartition("/")[2]}
    assert await said(client, conversation) == [
        ("user", "Hello"),
        ("user", "Go on"),
        ("assistant", "Hi!"),
    ]
    items = (await client.get(f"{conversation}/items")).json()["data"]
    assert items[0] == made["output"][0]
    assert (await client.get(f"/v1/responses/{made['id']}")).json() == made
    asked = (await client.get(f"/v1/responses/{made['id']}/input_items")).json()["data"]
    assert [_short(item) for item in asked] == [("user", "Go on")]
    state = await load(service.store, public_thread(made["id"]) or "")
    assert state is not None
    assert [m.content for m in state.messages] == ["Hello", "Go on", "Hi!"]
    assert state.requests[0].id == public_request(made["id"])


async def test_what_was_said_is_the_prompt_of_the_next_response(
    service: Service, client: httpx2.AsyncClient, worker: Worker, conversation: str
) -> None:
    await respond(client, worker, conversation, "Hi")
    asked = {"input": "And?", "conversation": {"id": conversation.rpartition("/")[2]}}
    stream = Stream(client, "/v1/responses", asked)
    claim = await worker.claim()
    queued = decode(claim.queued)
    assert isinstance(queued, RequestQueued)
    assert [m.content for m in queued.messages or ()] == ["Hello", "Go on", "Hi", "And?"]
    await worker.start(claim)
    assert (await stream.next()).status_code == 200
    busy = await client.post("/v1/responses", json=asked)
    assert (busy.status_code, busy.json()["error"]["code"]) == (409, "conversation_locked")
    item = {"items": [{"role": "user", "content": "x"}]}
    assert (await client.post(f"{conversation}/items", json=item)).status_code == 409
    await stream.leave()
    await settled(service, claim.stream, "request.cancelled")
    assert await said(client, conversation) == [
        ("user", "Hello"),
        ("user", "Go on"),
        ("assistant", "Hi"),
        ("user", "And?"),
    ]


async def test_calls_and_what_they_gave(
    service: Service, client: httpx2.AsyncClient, worker: Worker, conversation: str
) -> None:
    made = await respond(client, worker, conversation, "Look: ", CALL, tools=TOOLS)
    message, call = made["output"]
    given = {"type": "function_call_output", "call_id": call["call_id"], "output": "42"}
    await respond(client, worker, conversation, "It is 42.", input=[given], tools=TOOLS)
    assert (await said(client, conversation))[2:] == [
        ("assistant", "Look:"),
        ("f", '{"a": 1}'),
        (call["call_id"], "42"),
        ("assistant", "It is 42."),
    ]
    again = await client.post(
        "/v1/responses", json={"input": [given], "conversation": made["conversation"]}
    )
    assert again.json()["error"]["param"] == "input[0].call_id"
    state = await load(service.store, public_thread(made["id"]) or "")
    assert state is not None
    (step,) = state.steps
    assert (step.kind, step.name, step.input, step.output) == ("tool", "f", {"a": 1}, "42")
    await client.delete(f"{conversation}/items/{message['id']}")
    assert (await said(client, conversation))[2] == ("f", '{"a": 1}')
    asking = asyncio.create_task(
        client.post("/v1/responses", json={"input": "x", "conversation": made["conversation"]})
    )
    claim = await worker.claim()
    queued = decode(claim.queued)
    assert isinstance(queued, RequestQueued) and queued.messages is not None
    assert [m.role for m in queued.messages] == [
        *("user", "user", "assistant", "tool", "assistant", "user")
    ]
    assert queued.messages[2].tool_calls is not None
    assert queued.messages[3] == ChatMessage(role="tool", content="42", tool_call_id=step.id)
    await work(worker, claim, "ok")
    await asking


async def test_items_of_tools_from_a_client(client: httpx2.AsyncClient, conversation: str) -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
    gave = {"type": "function_call_output", "call_id": "c1", "output": "2"}
    await client.post(f"{conversation}/items", json={"items": [call]})
    added = await client.post(f"{conversation}/items", json={"items": [gave]})
    (item,) = added.json()["data"]
    assert (await said(client, conversation))[1:] == [("f", '{"a": 1}'), ("c1", "2")]
    for wrong in (call, gave, {**gave, "call_id": "c2"}, {"type": "web_search_call"}, {"role": 1}):
        answer = await client.post(f"{conversation}/items", json={"items": [wrong]})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith("items[0]")
    await client.delete(f"{conversation}/items/{item['id']}")
    assert (await said(client, conversation))[1:] == [("f", '{"a": 1}')]
    assert (await client.post(f"{conversation}/items", json={"items": []})).status_code == 400


async def test_a_response_that_failed_leaves_nothing(
    client: httpx2.AsyncClient, worker: Worker, conversation: str
) -> None:
    body = {"input": "Too long", "conversation": conversation.rpartition("/")[2]}
    asking = asyncio.create_task(client.post("/v1/responses", json=body))
    claim = await worker.claim()
    await worker.write(claim, RequestFailed(request=claim.request, code="context", message="x"))
    assert (await asking).status_code == 400
    assert await said(client, conversation) == [("user", "Hello")]


@pytest.mark.parametrize("background", [True, False])
async def test_a_response_is_deleted(
    service: Service,
    client: httpx2.AsyncClient,
    worker: Worker,
    conversation: str,
    background: bool,
) -> None:
    if background:
        body = {"input": "x", "background": True}
        made = (await client.post("/v1/responses", json=body)).json()
    else:
        made = await respond(client, worker, conversation, "Hi")
    url = f"/v1/responses/{made['id']}"
    gone = (await client.delete(url)).json()
    assert gone == {"id": made["id"], "object": "response", "deleted": True}
    for method, path in (("GET", url), ("DELETE", url), ("POST", f"{url}/cancel")):
        assert (await client.request(method, path)).status_code == 404
    if background:
        stream = f"request/{public_request(made['id'])}"
        assert await settled(service, stream, "response.deleted") == [
            *("request.queued", "request.cancelled", "response.deleted")
        ]
    else:
        assert (await said(client, conversation))[-1] == ("assistant", "Hi")


async def test_a_conversation_is_deleted(
    service: Service, client: httpx2.AsyncClient, worker: Worker, conversation: str
) -> None:
    body = {
        "input": "x",
        "background": True,
        "conversation": {"id": conversation.rpartition("/")[2]},
    }
    made = (await client.post("/v1/responses", json=body)).json()
    gone = (await client.delete(conversation)).json()
    assert gone == {
        "id": body["conversation"]["id"],  # type: ignore[index]
        "object": "conversation.deleted",
        "deleted": True,
    }
    assert (await client.get(f"/v1/responses/{made['id']}")).json()["status"] == "cancelled"
    for method in ("GET", "DELETE"):
        assert (await client.request(method, conversation)).status_code == 404
    assert (await client.post("/v1/responses", json=body)).status_code == 404


async def test_keys_see_their_own(service: Service, client: httpx2.AsyncClient) -> None:
    secrets = [
        (await keys.create(service.store, name, scopes=["api"])).secret for name in ("ann", "bob")
    ]
    await asyncio.sleep(0.1)  # until the server knows them
    ann, bob = ({"authorization": f"Bearer {secret}"} for secret in secrets)
    made = (await client.post("/v1/conversations", json={}, headers=ann)).json()
    url = f"/v1/conversations/{made['id']}"
    assert (await client.get(url, headers=ann)).json() == made
    for headers in (bob, {}):
        for method, path, body in (
            ("GET", url, None),
            ("POST", url, {"metadata": {}}),
            ("DELETE", url, None),
            ("GET", f"{url}/items", None),
            ("POST", f"{url}/items", {"items": [{"role": "user", "content": "x"}]}),
            ("POST", "/v1/responses", {"input": "x", "conversation": made["id"]}),
        ):
            answer = await client.request(method, path, json=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_both_ways_to_go_on_are_one_too_many(
    client: httpx2.AsyncClient, conversation: str
) -> None:
    id = conversation.rpartition("/")[2]
    body = {"input": "x", "conversation": id, "previous_response_id": "resp_x"}
    assert (await client.post("/v1/responses", json=body)).json()["error"]["param"] == (
        "conversation"
    )


@pytest.mark.parametrize("id", ["conv_x", "conv_" + "0" * 32, "x", "conv_" + "0" * 64])
async def test_one_that_does_not_exist(client: httpx2.AsyncClient, id: str) -> None:
    for method in ("GET", "DELETE"):
        assert (await client.request(method, f"/v1/conversations/{id}")).status_code == 404


async def test_handlers_leave_alone_what_came_through_the_api(
    service: Service, client: httpx2.AsyncClient
) -> None:
    thread = uuid7()
    history = [
        ThreadCreated(owner="local"),
        MessagePosted(message="a", role="user", content="From the chat"),
        RunStarted(run="r", hook="on_message", node="n", message="a"),
        RunCompleted(run="r"),
    ]
    events = [new(payload, run=getattr(payload, "run", None)) for payload in history]
    await service.store.append(Append(stream=thread_stream(thread), events=events))
    path = f"/v1/conversations/{public_id('conv_', thread)}"
    assert await said(client, path) == [("user", "From the chat")]
    await client.post(f"{path}/items", json={"items": [{"role": "user", "content": "x"}]})
    state = await load(service.store, thread)
    assert state is not None and waits(state) == []
    assert await said(client, path) == [("user", "From the chat"), ("user", "x")]


def test_ids() -> None:
    request, thread = uuid7(), uuid7()
    response = public_id("resp_", request, thread)
    assert (public_request(response), public_thread(response)) == (request, thread)
    assert public_thread(public_id("conv_", thread)) == thread
    assert public_thread(public_id("resp_", request)) is None
    assert public_request(public_id("chatcmpl-", request)) == request
    assert public_request(json.dumps(thread)) == json.dumps(thread)

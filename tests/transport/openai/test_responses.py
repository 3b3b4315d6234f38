"""Responses: made, found again, followed from any event on, cancelled, continued."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from app.events.catalogue import ChatMessage, RequestFailed, RequestQueued
from app.events.codec import decode
from app.events.store import Claimed
from app.transport.openai.errors import ApiError
from app.transport.openai.fields import parse
from app.transport.openai.response import ResponseAnswer
from app.transport.openai.responses import Past, ResponseBody, plan, turns
from app.transport.server import Service
from tests.transport.openai.test_answers import CALL, events
from tests.transport.openai.test_edge import Stream, Worker, client, settled, types

__all__ = ["client"]

TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]


def planned(past: Past | None = None, **fields: Any) -> RequestQueued:
    """A request out of a body."""
    body, _ = parse(json.dumps({"input": "Hello", **fields}).encode(), ResponseBody)
    return plan(body, past or Past(), deadline=None, origin={"metadata": body.metadata})


def answer(after: int = -1, **fields: Any) -> ResponseAnswer:
    """A response that has yet to come."""
    return ResponseAnswer(planned(**fields), model="m", created=1, after=after)


def frames(data: bytes) -> list[dict[str, Any]]:
    """Events of a stream; each is named as its data says."""
    found = []
    for frame in data.decode().split("\n\n")[:-1]:
        name, _, value = frame.partition("\n")
        event = json.loads(value.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def run(response: ResponseAnswer, *texts: str, reason: str = "stop") -> list[dict[str, Any]]:
    """All events of its stream."""
    data = [response.feed(0, payload) for payload in events(*texts, reason=reason)]
    return frames(b"".join([response.opening(), *data, response.closing()]))


# ------------------------------------------------------------------------------ translation


def test_a_text_as_a_stream() -> None:
    response = answer(instructions="Be brief.", metadata={"a": "b"})
    found = run(response, "Hel", "lo")
    assert [event["type"].removeprefix("response.") for event in found] == [
        *("created", "queued", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done", "content_part.done"),
        *("output_item.done", "completed"),
    ]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    body = found[-1]["response"]
    assert body == response.body()
    assert body["status"] == "completed"
    assert body["output"][0]["content"][0]["text"] == "Hello"
    assert body["usage"]["input_tokens_details"] == {"cached_tokens": 4}
    assert (body["instructions"], body["metadata"]) == ("Be brief.", {"a": "b"})
    assert found[0]["response"]["usage"] is None


def test_it_goes_on_behind_any_event() -> None:
    queued = planned(tools=TOOLS)
    texts = ("I look. ", *CALL)

    def stream(after: int) -> list[dict[str, Any]]:
        return run(ResponseAnswer(queued, model="m", created=1, after=after), *texts)

    whole = stream(-1)
    for after in range(len(whole)):
        assert stream(after) == whole[after + 1 :]


def test_calls() -> None:
    response = answer(tools=TOOLS)
    found = run(response, "I look. ", CALL, CALL)
    kinds = [item["type"] for item in response.output]
    assert kinds == ["message", "function_call", "function_call"]
    assert response.output[0]["status"] == "completed"
    assert len({item["id"] for item in response.output}) == 3
    done = [e for e in found if e["type"] == "response.function_call_arguments.done"]
    assert [e["arguments"] for e in done] == ['{"a": 1}'] * 2
    assert [e["output_index"] for e in done] == [1, 2]


def test_an_answer_that_was_cut() -> None:
    body = run(answer(max_output_tokens=1), "a", reason="length")[-1]["response"]
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}


def test_bad_ends() -> None:
    response = answer()
    response.feed(0, events("a")[0])
    (failed,) = frames(response.broken(ApiError(500, "no more", code="error")))
    assert failed["response"]["error"] == {"code": "error", "message": "no more"}
    assert failed["response"]["status"] == "failed"
    (error,) = frames(answer().broken(ApiError(503, "bye", code="shutting_down")))
    assert error["type"] == "error"


def test_items_of_a_prompt() -> None:
    found = turns(
        [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "message", "role": "assistant", "content": "b"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"x": 1}'},
            {"type": "function_call_output", "call_id": "c", "output": "2"},
            {"type": "reasoning", "summary": []},
        ]
    )
    assert [turn.role for turn in found] == ["user", "assistant", "tool"]
    assert found[1].tool_calls is not None and found[1].tool_calls[0].arguments == {"x": 1}
    assert found[2].tool_call_id == "c"


def test_instructions_come_before_what_was_said() -> None:
    past = Past([ChatMessage(role="user", content="a"), ChatMessage(role="assistant", content="b")])
    request = planned(past, instructions="Be brief.", previous_response_id="resp_x")
    assert [m.content for m in request.messages or ()] == ["Be brief.", "a", "b", "Hello"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": []}, "input"),
    ({"input": 1}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input[0].content[0].type",
    ),
    ({"n": 2}, "n"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"prompt": {"id": "x"}}, "prompt"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=[str(fields) for fields, _ in WRONG])
def test_errors_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        planned(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)


# ---------------------------------------------------------------------------------- server


async def work(worker: Worker, claim: Claimed, *texts: str) -> None:
    """Answer a request."""
    await worker.start(claim)
    for batch, text in enumerate(texts):
        await worker.say(claim, text, batch)
    await worker.finish(claim, "".join(texts))


@pytest.fixture
async def worker(service: Service) -> AsyncIterator[Worker]:
    """A worker made by hand."""
    yield Worker(service)


async def test_a_response_is_found_again(client: httpx2.AsyncClient, worker: Worker) -> None:
    asking = asyncio.create_task(client.post("/v1/responses", json={"input": "Hello"}))
    await work(worker, await worker.claim(), "Hi", "!")
    made = (await asking).json()
    assert made["output"][0]["content"][0]["text"] == "Hi!"
    assert (await client.get(f"/v1/responses/{made['id']}")).json() == made
    asked = (await client.get(f"/v1/responses/{made['id']}/input_items")).json()
    assert asked["data"][0]["content"] == [{"type": "input_text", "text": "Hello"}]


async def test_one_in_the_background_is_followed_from_any_event_on(
    service: Service, client: httpx2.AsyncClient, worker: Worker
) -> None:
    body = {"input": "Hello", "background": True}
    made = (await client.post("/v1/responses", json=body)).json()
    assert made["status"] == "queued"
    claim = await worker.claim()
    url = f"/v1/responses/{made['id']}"
    live = asyncio.create_task(client.get(url, params={"stream": "true"}))
    await worker.start(claim)
    assert (await client.get(url)).json()["status"] == "in_progress"
    await worker.say(claim, "Hi")
    await worker.finish(claim, "Hi")
    whole = frames((await live).content)
    assert whole[-1]["type"] == "response.completed"
    for after in (0, 4, len(whole) - 1):
        params = {"stream": "true", "starting_after": str(after)}
        rest = frames((await client.get(url, params=params)).content)
        assert rest == whole[after + 1 :]
    refused = await client.get(url, params={"stream": "true", "starting_after": "x"})
    assert refused.json()["error"]["param"] == "starting_after"


async def test_one_in_the_background_outlives_its_client(
    service: Service, client: httpx2.AsyncClient, worker: Worker
) -> None:
    stream = Stream(client, "/v1/responses", {"input": "Hello", "background": True})
    claim = await worker.claim()
    await worker.start(claim)
    await stream.next()
    await stream.leave()
    await worker.say(claim, "Hi")
    await worker.finish(claim, "Hi")
    assert (await types(service, claim.stream))[-1] == "request.finished"


async def test_one_is_cancelled(
    service: Service, client: httpx2.AsyncClient, worker: Worker
) -> None:
    body = {"input": "Hello", "background": True}
    made = (await client.post("/v1/responses", json=body)).json()
    claim = await worker.claim()
    await worker.start(claim)
    await worker.say(claim, "Hi")
    url = f"/v1/responses/{made['id']}"
    cancelled = (await client.post(f"{url}/cancel")).json()
    assert cancelled["status"] == "cancelled"
    assert cancelled["output"][0]["content"][0]["text"] == "Hi"
    assert (await client.post(f"{url}/cancel")).json() == cancelled
    whole = frames((await client.get(url, params={"stream": "true"})).content)
    assert whole[-1]["response"]["status"] == "cancelled"
    await settled(service, claim.stream, "request.cancelled")


async def test_one_that_failed_is_found_too(client: httpx2.AsyncClient, worker: Worker) -> None:
    body = {"input": "Hello", "background": True}
    made = (await client.post("/v1/responses", json=body)).json()
    claim = await worker.claim()
    await worker.write(claim, RequestFailed(request=claim.request, code="error", message="x"))
    url = f"/v1/responses/{made['id']}"
    assert (await client.get(url)).json()["error"] == {"code": "error", "message": "x"}
    whole = frames((await client.get(url, params={"stream": "true"})).content)
    assert whole[-1]["type"] == "response.failed"
    next = await client.post(
        "/v1/responses", json={"input": "x", "previous_response_id": made["id"]}
    )
    assert next.json()["error"]["param"] == "previous_response_id"


async def test_a_conversation_of_responses(client: httpx2.AsyncClient, worker: Worker) -> None:
    previous = None
    for number, word in enumerate(("one", "two", "three")):
        body = {"input": word, "instructions": "Count.", "previous_response_id": previous}
        asking = asyncio.create_task(client.post("/v1/responses", json=body))
        claim = await worker.claim()
        queued = decode(claim.queued)
        assert isinstance(queued, RequestQueued) and queued.messages is not None
        assert len(queued.messages) == 2 + 2 * number
        await work(worker, claim, word.upper())
        previous = (await asking).json()["id"]
    assert [m.content for m in queued.messages] == ["Count.", "one", "ONE", "two", "TWO", "three"]


@pytest.mark.parametrize("id", ["resp_x", "resp_" + "0" * 32, "x"])
async def test_one_that_does_not_exist(client: httpx2.AsyncClient, id: str) -> None:
    for answer in (
        await client.get(f"/v1/responses/{id}"),
        await client.post(f"/v1/responses/{id}/cancel"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")

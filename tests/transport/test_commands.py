"""Commands: acknowledged once committed, and taking effect once."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from app.events.catalogue import ThreadCreated
from app.events.codec import new
from app.events.envelope import thread_stream
from app.events.ids import uuid7
from app.events.store import Append
from app.transport.client import Client, Refusal
from app.transport.protocol import Item
from app.transport.server import Service
from tests.transport.serving import raw


def post(thread: str, content: str = "hi 3") -> dict[str, Any]:
    return {"t": "post", "id": uuid7(), "thread": thread, "content": content}


async def test_post_is_in_the_log_when_it_is_acknowledged(service: Service) -> None:
    thread = uuid7()
    async with raw(service.url) as client:
        command = post(thread)
        await client.send(command)
        ack = (await client.until("ack"))[-1]
        assert (ack["id"], ack["thread"]) == (command["id"], thread)
        events = await service.store.fetch(stream=thread_stream(thread))
        assert ack["version"] <= events[-1].version
        types = [event.type for event in events[: ack["version"]]]
        assert types == ["thread.created", "message.posted", "run.started"]
        assert events[ack["version"] - 1].seq == ack["seq"]


async def test_sent_again_it_is_acknowledged_again_and_done_once(service: Service) -> None:
    thread, command = uuid7(), None
    acks = []
    for _ in range(3):  # each time on a connection of its own, as after a reconnect
        async with raw(service.url) as client:
            command = command or post(thread)
            await client.send(command)
            await client.send(command)
            acks += [(await client.until("ack"))[-1] for _ in range(2)]
    assert all(ack == acks[0] for ack in acks)
    events = await service.store.fetch(stream=thread_stream(thread))
    assert sum(event.type == "message.posted" for event in events) == 1


async def test_refusals_name_the_field_and_change_nothing(service: Service) -> None:
    thread = uuid7()
    async with Client(service.url) as client:
        head = await service.store.head()
        with pytest.raises(Refusal) as caught:
            await client.post(thread, "   ")
        assert (caught.value.code, caught.value.field) == ("bad_field", "content")
        with pytest.raises(Refusal) as caught:
            await client.post("not-a-uuid", "hi")
        assert (caught.value.code, caught.value.field) == ("bad_field", "thread")
        with pytest.raises(Refusal) as caught:
            await client.post(thread, "hi", params={"temperature": -1})
        assert caught.value.field == "params.temperature"
        with pytest.raises(Refusal) as caught:
            await client.stop(thread)
        assert caught.value.code == "not_found"
        assert await service.store.head() == head


async def test_rename_feedback_delete(service: Service) -> None:
    thread = uuid7()
    async with raw(service.url) as client:
        await client.send({"t": "open", "thread": thread})
        await client.send(post(thread))
        answer = None
        while True:
            frame = await client.recv()
            items = frame.get("items", ())
            answer = next((i["data"] for i in items if i["type"] == "message.started"), answer)
            if any(item["type"] == "run.completed" for item in items):
                break
        assert answer is not None
        for command in (
            {"t": "rename", "title": "A name"},
            {"t": "feedback", "message": answer["message"], "value": 1, "comment": "good"},
            {"t": "delete"},
        ):
            await client.send({**command, "id": uuid7(), "thread": thread})
            await client.until("ack")
        await client.send({"t": "rename", "id": uuid7(), "thread": thread, "title": "x"})
        assert (await client.until("refuse"))[-1]["code"] == "not_found"
        await client.send({"t": "close", "thread": thread})
        await client.send({"t": "open", "thread": thread})
        refusal = (await client.until("refuse"))[-1]
        assert (refusal["code"], refusal["thread"]) == ("not_found", thread)
    types = [event.type for event in await service.store.fetch(stream=thread_stream(thread))]
    assert {"thread.renamed", "message.feedback", "thread.deleted"} <= set(types)


async def test_stop_ends_the_run_and_closing_the_socket_does_not(service: Service) -> None:
    kept, stopped = uuid7(), uuid7()
    async with Client(service.url) as client:
        await client.post(kept, "word 30")
        await client.post(stopped, "word 3000")
        await asyncio.sleep(0.1)
        await client.stop(stopped)
    async with Client(service.url) as client:
        for thread, end in ((kept, "run.completed"), (stopped, "run.stopped")):
            async with asyncio.timeout(20), aclosing(client.follow(thread)) as items:
                async for item in items:
                    if isinstance(item, Item) and item.type.startswith("run."):
                        ended = item.type
                        if ended != "run.started":
                            break
            assert ended == end


async def test_somebody_elses_thread_is_forbidden(service: Service) -> None:
    thread, late = uuid7(), uuid7()
    created = new(ThreadCreated(owner="somebody"), actor="user:somebody")
    await service.store.append(Append(stream=thread_stream(thread), events=[created]))
    head = await service.store.head()
    async with raw(service.url) as client:
        await client.send({"t": "open", "thread": thread})
        refusal = await client.recv()
        assert (refusal["code"], refusal["thread"]) == ("forbidden", thread)
        for command in (
            {"t": "post", "content": "x"},
            {"t": "stop"},
            {"t": "rename", "title": "x"},
            {"t": "delete"},
            {"t": "feedback", "message": uuid7(), "value": 1},
        ):
            await client.send({**command, "id": uuid7(), "thread": thread})
            assert (await client.until("refuse"))[-1]["code"] == "forbidden", command
        assert await service.store.head() == head
        # Opened while it did not exist, then begun by somebody else: nothing of it is shown.
        await client.send({"t": "open", "thread": late})
        await client.until("live")
        await service.store.append(Append(stream=thread_stream(late), events=[created]))
        assert (await client.until("refuse"))[-1]["code"] == "forbidden"


async def test_lists_are_hinted_at(service: Service) -> None:
    async with raw(service.url) as idle, raw(service.url) as busy:
        for _ in range(5):
            await busy.send(post(uuid7(), "fast 1"))
        head = (await idle.until("threads"))[-1]["head"]
        assert head >= 2
        await asyncio.sleep(0.7)
        hints = 1
        await idle.send({"t": "ping", "n": 1})
        while (await idle.recv(hints=True))["t"] != "pong":
            hints += 1
        assert hints <= 4  # coalesced: there were fifteen changes and more

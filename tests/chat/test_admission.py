"""A message that would wait behind too many is refused before anything of it is written."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from app.chat.admission import Admission, Full
from app.chat.commands import PostCommand
from app.chat.errors import Refused
from app.config import ServerConfig
from app.events.catalogue import RequestQueued, SamplingParams
from app.events.codec import new
from app.events.envelope import actor_of
from app.events.ids import uuid7
from app.events.store import Append, EventStore
from tests.chat.conftest import USER, app_of, serving


async def silent(message: object) -> None:
    """Answer nothing."""


async def test_a_message_is_refused_while_too_much_waits(store: EventStore, thread: str) -> None:
    queued = RequestQueued(
        request="r", params=SamplingParams(seed=1), text="x", tenant=actor_of(USER)
    )
    limits = ServerConfig(max_queue=9, max_queue_tenant=1)
    async with serving(store, app_of(on_message=silent), server=limits) as chat:
        first = PostCommand(id=uuid7(), thread=thread, content="hi", message=uuid7())
        ack = await chat.runtime.post(first, USER)
        await chat.settled(thread)
        await store.append(Append(stream="request/r", events=[new(queued, request="r")]))
        head = await store.head()
        again = PostCommand(id=uuid7(), thread=thread, content="more", message=uuid7())
        with pytest.raises(Refused, match="1 of your requests wait") as caught:
            await chat.runtime.post(again, USER)
        assert caught.value.code == "limit"
        assert await store.head() == head
        assert await chat.runtime.post(first, USER) == ack  # sent twice: it took effect before
        other = PostCommand(id=uuid7(), thread=uuid7(), content="me too", message=uuid7())
        await chat.runtime.post(other, "eve")
        await store.claim(worker="w", limit=1, lease=9)
        await chat.runtime.post(again, USER)
        await chat.settled(thread, runs=2)


@pytest.mark.parametrize(("total", "own", "queued"), [(4, 0, 4), (0, 3, 9), (7, 3, 7), (0, 0, 60)])
async def test_those_who_come_at_once_see_each_other(
    store: EventStore, total: int, own: int, queued: int
) -> None:
    admission = Admission(store, ServerConfig(max_queue=total, max_queue_tenant=own))

    async def ask(number: int) -> None:
        name, tenant = f"r{number}", f"key:{number % 3}"
        asked = RequestQueued(request=name, params=SamplingParams(seed=1), text="x", tenant=tenant)
        with contextlib.suppress(Full):
            async with admission.room(tenant):
                await asyncio.sleep(number % 4 / 1000)
                append = Append(stream=f"request/{name}", events=[new(asked, request=name)])
                await store.append(append)

    await asyncio.gather(*(ask(number) for number in range(60)))
    found = [await store.waiting(f"key:{number}") for number in range(3)]
    # Whoever looks while others get in may count them twice, never not at all.
    assert 1 <= found[0][1] == sum(mine for mine, _ in found) <= queued
    for number in range(60, 90) if total or own else ():
        await ask(number)
    assert (await store.waiting(""))[1] == queued

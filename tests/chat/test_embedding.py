"""``llm.embed`` without an engine; with one it is in `test_llm`."""

from __future__ import annotations

import pytest

import app as el
from app.chat import embedding
from app.errors import InputError
from app.events.codec import decode
from app.events.envelope import request_stream
from app.events.store import EventStore
from tests.chat.conftest import app_of, serving


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"texts": []}, "texts"),
        ({"texts": ""}, "texts[0]"),
        ({"texts": ["a", 1]}, "texts[1]"),
        ({"texts": "a", "dimensions": 0}, "dimensions"),
        ({"texts": "a", "timeout": -1}, "timeout"),
    ],
)
async def test_bad_arguments_are_named(
    store: EventStore, thread: str, arguments: dict[str, object], field: str
) -> None:
    caught: list[str | None] = []

    async def on_message() -> None:
        try:
            await el.llm.embed(**arguments)  # type: ignore[arg-type]
        except InputError as error:
            caught.append(error.field)

    async with serving(store, app_of(on_message=on_message)) as chat:
        await chat.ask(thread)
    assert caught == [field]


async def test_a_stop_cancels_what_is_queued(
    store: EventStore, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "WINDOW", 2)

    async def on_message() -> None:
        await el.llm.embed(["one", "two", "three"], dimensions=8, priority=1, timeout=60)

    async with serving(store, app_of(on_message=on_message)) as chat:
        await chat.post(thread)
        streams: list[str] = []
        async for batch in store.follow(after=0, types=("request.queued",)):
            streams += [event.stream for event in batch]
            if len(streams) == 2:
                break
        await chat.stop(thread)
        await chat.settled(thread)
        head = await store.head()
        events = [event async for event in store.read(stream=streams[0])]
        while [e.type for e in events].count("request.cancelled") < 2:
            await store.wait(after=head)
            head = await store.head()
            events = [event async for event in store.read(stream=streams[0])]
        types = await chat.types(thread)
    first = decode(events[0])
    assert streams == [request_stream(first.request)] * 2  # type: ignore[union-attr]
    assert sorted(e.type for e in events) == ["request.cancelled"] * 2 + ["request.queued"] * 2
    assert first.metadata == {"thread": thread, "run": first.metadata["run"], "input": 0}  # type: ignore[union-attr]
    assert (first.priority, first.embed.dimensions, first.tenant) == (1, 8, "user:local")  # type: ignore[union-attr]
    assert not any(type.startswith("request.") for type in types)

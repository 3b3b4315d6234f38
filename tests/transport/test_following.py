"""Following a thread: exact resume, two tabs, slow clients, resets."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from app.events.catalogue import (
    MessageDelta,
    MessageStarted,
    Payload,
    RequestCancelled,
    RequestQueued,
    RequestStarted,
    SamplingParams,
    ThreadCreated,
    TokensGenerated,
)
from app.events.codec import new
from app.events.envelope import thread_stream
from app.events.ids import uuid7
from app.events.store import Append, Appended, EventStore, Fence
from app.projections import state as projection
from app.transport import client as client_module
from app.transport.client import Client
from app.transport.items import to_event
from app.transport.protocol import Item, Live, Reset
from app.transport.server import Service
from tests.transport.serving import raw, serving

pytestmark = pytest.mark.timeout(60)


async def append(store: EventStore, thread: str, *payloads: Payload) -> int:
    """Append to a thread; returns its version."""
    events = [new(payload, actor="handler:test") for payload in payloads]
    outcome = await store.append(Append(stream=thread_stream(thread), events=events))
    assert isinstance(outcome, Appended)
    return outcome.version


async def begin(store: EventStore, thread: str) -> None:
    created = ThreadCreated(owner="local")
    await append(store, thread, created, MessageStarted(message="m"))


async def generate(store: EventStore, thread: str, batches: int, *, pause: float = 0.0) -> None:
    """Run a request as an engine would: 5 events (queued, message, claimed, started, cancelled)
    and one for every batch of three tokens.
    """
    request, stream = uuid7(), thread_stream(thread)

    async def write(payload: Payload, fenced: bool = True) -> None:
        event = new(payload, actor="engine:w", request=request)
        fence = Fence(request, 1) if fenced else None
        outcome = await store.append(Append(stream=stream, events=[event], fence=fence))
        assert isinstance(outcome, Appended), outcome

    params = SamplingParams(seed=1)
    await write(RequestQueued(request=request, params=params, prompt=[1], model="none"), False)
    await append(store, thread, MessageStarted(message=uuid7(), request=request))
    claimed = await store.claim(worker="w", limit=1, lease=60, models=["none"])
    assert [claim.request for claim in claimed] == [request]
    await write(
        RequestStarted(request=request, epoch=1, model="none", weights="0", prompt_tokens=1)
    )
    for n in range(batches):
        tokens = [3 * n, 3 * n + 1, 3 * n + 2]
        text = f"é{n} "
        await write(
            TokensGenerated(
                request=request,
                epoch=1,
                batch=n,
                index=3 * n,
                tokens=tokens,
                text=text,
                offsets=[0.5, 1.5, 2.5],
            )
        )
        if pause:
            await asyncio.sleep(pause)
    await write(RequestCancelled(request=request), False)


class Copy:
    """What a client has made of what it got: its own fold of a thread."""

    def __init__(self, thread: str) -> None:
        self.thread = thread
        self.state = projection.empty(thread)
        self.merged = 0
        self.resets = 0

    def take(self, item: Item | Live | Reset) -> None:
        if isinstance(item, Reset):
            self.resets += 1
            self.state = msgspec.json.decode(item.state, type=projection.ThreadState)
        elif isinstance(item, Item):
            assert item.v == self.state.version + 1, "a hole, or a repeat"
            self.merged += item.to is not None
            projection.apply(self.state, to_event(item, self.thread))

    async def follow(self, client: Client, until: int | None = None, **options: object) -> None:
        """Follow up to a version, or to `Live`."""
        items = client.follow(self.thread, after=self.state.version, **options)  # type: ignore[arg-type]
        async with asyncio.timeout(30), aclosing(items):
            async for item in items:
                self.take(item)
                if self.state.version == until or (until is None and isinstance(item, Live)):
                    return


async def test_live_means_caught_up_and_comes_once(service: Service) -> None:
    thread = uuid7()
    await begin(service.store, thread)
    async with raw(service.url) as client:
        await client.send({"t": "open", "thread": thread, "after": 0, "incarnation": None})
        events, live = await client.until("live")
        assert (events["first"], events["last"]) == (1, 2)
        assert live == {"t": "live", "thread": thread, "version": 2}
        await append(service.store, thread, MessageDelta(message="m", text="x"))
        assert (await client.until("events"))[-1]["first"] == 3
        await client.send({"t": "ping", "n": 4})
        pong = (await client.until("pong"))[-1]
        assert pong == {"t": "pong", "n": 4, "heads": {thread: 3}}


async def test_payloads_arrive_as_they_were_stored(service: Service) -> None:
    thread = uuid7()
    await begin(service.store, thread)
    await append(service.store, thread, MessageDelta(message="m", text='é"\\\u2028\x00😀</script>'))
    got = []
    async with Client(service.url) as client, aclosing(client.follow(thread)) as items:
        async for item in items:
            if isinstance(item, Live):
                break
            assert isinstance(item, Item)
            got.append(bytes(item.data))
    stored = await service.store.fetch(stream=thread_stream(thread))
    assert got == [event.data for event in stored]


@pytest.mark.parametrize("seed", range(4))
async def test_resume_is_exact_whenever_the_connection_breaks(service: Service, seed: int) -> None:
    thread, chance = uuid7(), random.Random(seed)
    await begin(service.store, thread)
    copy = Copy(thread)
    async with Client(service.url) as client:
        writing = asyncio.create_task(generate(service.store, thread, 150, pause=0.002))
        until = 2 + 5 + 150

        async def cut() -> None:
            while True:
                await asyncio.sleep(chance.uniform(0, 0.08))
                client.cut()

        cutting = asyncio.create_task(cut())
        await copy.follow(client, until)
        cutting.cancel()
        await writing
        assert client.connections > 2
    assert copy.resets == 0
    assert copy.state == await projection.load(service.store, thread)


async def test_cut_before_the_first_frame_resumes_where_it_was_opened(service: Service) -> None:
    """The cursor is what was sent as ``after``, not 0 (a bug others had)."""
    thread = uuid7()
    await begin(service.store, thread)
    async with Client(service.url) as client, aclosing(client.follow(thread, after=2)) as items:
        reading = asyncio.ensure_future(anext(items))
        await asyncio.sleep(0)
        client.cut()
        assert await reading == Live(thread=thread, version=2)
        client.cut()
        await append(service.store, thread, MessageDelta(message="m", text="x"))
        item = await anext(items)
        while isinstance(item, Live):
            item = await anext(items)
        assert isinstance(item, Item) and item.v == 3


async def test_a_second_tab_sees_the_same(service: Service) -> None:
    thread = uuid7()
    async with Client(service.url) as one, Client(service.url) as two:
        ack = await one.post(thread, "word 20")
        copies = [Copy(thread), Copy(thread)]
        until = ack.version + 1 + 20 + 2
        await asyncio.gather(copies[0].follow(one, until), copies[1].follow(two, until))
    assert copies[0].state == copies[1].state == await projection.load(service.store, thread)


async def test_after_a_restart_the_same_cursor_goes_on(tmp_path: Path) -> None:
    thread = uuid7()
    async with serving(tmp_path) as service:
        port = int(service.url.rsplit(":", 1)[1])
        await begin(service.store, thread)
        client = await Client(service.url).__aenter__()
        items = client.follow(thread)
        assert [getattr(await anext(items), "v", None) for _ in range(2)] == [1, 2]
    async with serving(tmp_path, port=port) as service:
        await append(service.store, thread, MessageDelta(message="m", text="x"))
        async with asyncio.timeout(10):
            item = await anext(items)
            while isinstance(item, Live):
                item = await anext(items)
        assert isinstance(item, Item) and item.v == 3
        assert client.connections == 2
        await items.aclose()
        await client.__aexit__(None, None, None)


async def test_a_slow_client_costs_a_cursor_and_catches_up_exactly(service: Service) -> None:
    thread = uuid7()
    await begin(service.store, thread)
    filler = MessageDelta(message="m", text="x" * 2000)
    async with raw(service.url, max_queue=1) as slow:  # reads one frame ahead, then no more
        slow.socket.transport.pause_reading()
        await slow.send({"t": "open", "thread": thread, "after": 0})
        await asyncio.sleep(0.1)
        (socket,) = service.hub.open
        tracemalloc.start()
        sizes = []
        for _ in range(8):
            await append(service.store, thread, *[filler] * 500)  # a megabyte
            await asyncio.sleep(0.02)
            sizes.append(socket.transport.get_write_buffer_size())
        transport = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, "*/app/transport/*")]
        )
        tracemalloc.stop()
        assert max(sizes) < 400_000, sizes
        assert sum(stat.size for stat in transport.statistics("filename")) < 2_000_000
        others = Copy(thread)
        async with Client(service.url) as quick:  # is not held up
            await others.follow(quick, 4002)
        slow.socket.transport.resume_reading()
        version = 0
        while version < 4002:
            frame = await slow.recv()
            if frame["t"] == "events":
                assert frame["first"] == version + 1
                version = frame["last"]
    assert others.state == await projection.load(service.store, thread)


async def test_a_client_that_lags_gets_fewer_and_larger_items(service: Service) -> None:
    thread = uuid7()
    await begin(service.store, thread)
    await generate(service.store, thread, 300)
    copy = Copy(thread)
    async with Client(service.url) as client:
        await copy.follow(client)
    assert 0 < copy.merged < 20
    assert copy.state == await projection.load(service.store, thread)


@pytest.mark.parametrize(
    ("after", "incarnation", "reason"),
    [(3, None, "ahead"), (10**12, None, "ahead"), (1, "another", "incarnation")],
)
async def test_a_cursor_that_means_nothing_here_is_reset(
    service: Service, after: int, incarnation: str | None, reason: str
) -> None:
    thread = uuid7()
    await begin(service.store, thread)
    async with raw(service.url) as client:
        frame = {"t": "open", "thread": thread, "after": after, "incarnation": incarnation}
        await client.send(frame)
        reset, _ = await client.until("live")
        assert (reset["t"], reset["reason"], reset["version"]) == ("reset", reason, 2)
        state = await projection.load(service.store, thread)
        assert msgspec.convert(reset["state"], projection.ThreadState) == state
        await append(service.store, thread, MessageDelta(message="m", text="x"))
        assert (await client.until("events"))[-1]["first"] == 3


async def test_a_thread_that_was_lost_is_reset_to_nothing(service: Service) -> None:
    thread = uuid7()
    async with raw(service.url) as client:
        await client.send({"t": "open", "thread": thread, "after": 5})
        reset, live = await client.until("live")
        assert (reset["version"], reset["state"]["messages"], live["version"]) == (0, [], 0)


async def test_opening_again_moves_the_cursor(service: Service) -> None:
    thread = uuid7()
    await begin(service.store, thread)
    async with raw(service.url) as client:
        for after, first in ((0, 1), (1, 2), (0, 1)):
            await client.send({"t": "open", "thread": thread, "after": after})
            events, _ = await client.until("live")
            assert events["first"] == first
        await client.send({"t": "close", "thread": thread})
        await client.send({"t": "ping", "n": 1})
        await client.until("pong")
        await append(service.store, thread, MessageDelta(message="m", text="x"))
        await client.send({"t": "ping", "n": 2})
        assert (await client.until("pong"))[-1]["heads"] == {}


async def test_the_client_reopens_when_a_frame_is_missing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drop frames between socket and cursor: the client asks again, and misses nothing."""
    thread, chance = uuid7(), random.Random(1)
    await begin(service.store, thread)
    take = client_module.Client._take

    async def lossy(self: Client, frame: object) -> None:
        if chance.random() > 0.2:
            await take(self, frame)  # type: ignore[arg-type]

    monkeypatch.setattr(client_module.Client, "_take", lossy)
    copy = Copy(thread)
    async with Client(service.url) as client:
        writing = asyncio.create_task(generate(service.store, thread, 100, pause=0.002))
        await copy.follow(client, 2 + 5 + 99)  # the last frame may be lost, with none behind it
        await writing
    loaded = await projection.load(service.store, thread)
    assert loaded is not None and copy.state.version >= loaded.version - 1

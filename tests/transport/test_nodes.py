"""Several services on one Postgres: a client may talk to any of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.config import Config, DatabaseConfig, EngineConfig, ServerConfig
from app.engine.workers import presence_name, worker_stream
from app.errors import StartupError
from app.events import codec
from app.events.catalogue import WorkerDrained, WorkerStarted
from app.events.ids import uuid7
from app.events.open import open_store
from app.events.presence import Presence
from app.events.store import Append, EventStore
from app.transport.client import Client
from app.transport.protocol import Item, Notice
from app.transport.server import Service, serve
from tests.support.postgres import Cluster, cluster, new_database
from tests.transport.serving import chat_file, http, raw

pytestmark = pytest.mark.timeout(120)

LEASE = 1.5


def config(url: str, **server: object) -> Config:
    return Config(
        server=ServerConfig(
            **{"port": 0, "drain_seconds": 2, "lease_seconds": LEASE, **server}  # type: ignore[arg-type]
        ),
        database=DatabaseConfig(url=url),
        engine=EngineConfig(enabled=False),
    )


@contextlib.asynccontextmanager
async def node(
    url: str, file: Path | None, *, clean: bool = True, **server: object
) -> AsyncIterator[Service]:
    """A service; without ``clean`` it is cut off at the end."""
    ready: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(
        serve(config(url, **server), file=file, on_ready=ready.set_result)
    )
    await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    service = ready.result()
    try:
        yield service
    finally:
        if clean:
            service.stop()
            await running
        else:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def true(what: Callable[[], bool]) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110 - a look from outside
            await asyncio.sleep(0.05)


async def until(
    client: Client, thread: str, *, after: int = 0, type: str, times: int = 1
) -> list[Item]:
    """Items of a thread up to the last of so many of a type."""
    items: list[Item] = []
    async with (
        asyncio.timeout(30),
        contextlib.aclosing(client.follow(thread, after=after)) as following,
    ):
        async for item in following:
            if isinstance(item, Item):
                items.append(item)
                if sum(i.type == type for i in items) == times:
                    return items
    raise AssertionError


async def test_any_node_takes_commands_and_shows_what_happens(
    postgres_url: str, tmp_path: Path
) -> None:
    file, thread = chat_file(tmp_path), uuid7()
    async with (
        node(postgres_url, file) as a,
        node(postgres_url, file) as b,
        Client(a.url) as first,
        Client(b.url) as second,
    ):
        await first.post(thread, "word 60")
        seen = await until(second, thread, type="message.delta")
        await second.post(thread, "fast 1")  # waits for the run at the other node
        seen += await until(second, thread, after=seen[-1].last, type="run.completed", times=2)
        assert [v for i in seen for v in range(i.v, i.last + 1)] == list(
            range(1, seen[-1].last + 1)
        )
        types = [item.type for item in seen]
        posted = [n for n, type in enumerate(types) if type == "message.posted"]
        started = [n for n, type in enumerate(types) if type == "run.started"]
        completed = [n for n, type in enumerate(types) if type == "run.completed"]
        assert posted[1] < completed[0] < started[1]
        await second.post(thread, "word 4000")
        await first.stop(thread)
        await until(second, thread, after=seen[-1].last, type="run.stopped")
        listed = (await http(f"{a.url}/api/threads")).json["items"]
        assert [row["id"] for row in listed] == [thread]


async def test_what_a_dead_node_left_is_ended_by_another(postgres_url: str, tmp_path: Path) -> None:
    file, thread = chat_file(tmp_path), uuid7()
    async with node(postgres_url, file) as b, node(postgres_url, file) as c:
        async with node(postgres_url, file, clean=False) as a, Client(a.url) as client:
            await client.post(thread, "word 4000")
            await until(client, thread, type="message.delta")
            await client.post(thread, "fast 1")
        async with Client(b.url) as client:
            items = await until(client, thread, type="run.completed")
        await asyncio.sleep(LEASE)
        assert [i.type for i in items].count("run.interrupted") == 1
        assert await c.store.stream_version(f"thread/{thread}") == items[-1].last


async def test_two_services_of_one_name(postgres_url: str, tmp_path: Path) -> None:
    file = chat_file(tmp_path)
    async with node(postgres_url, file, node="edge"):
        with pytest.raises(StartupError, match="'edge'"):
            async with node(postgres_url, file, node="edge"):
                pass
    async with node(postgres_url, file, node="edge") as again:
        assert again.runtime.presence.name == "edge"


# ------------------------------------------------------------------------------- workers


async def tell(store: EventStore, payload: WorkerStarted | WorkerDrained) -> None:
    append = Append(stream=worker_stream(payload.worker), events=[codec.new(payload)])
    await store.append(append)


STARTED = WorkerStarted(
    worker="gpu", model="m", weights="w", device="cuda", pid=1, context=512, blocks=9
)


async def test_without_a_worker_people_are_told_and_with_one_it_clears(postgres_url: str) -> None:
    notices: list[Notice] = []
    async with node(postgres_url, None) as a, node(postgres_url, None) as b:
        ready = await http(f"{a.url}/readyz")
        assert (ready.status, ready.json["checks"]["engine"]) == (200, "no worker")
        async with raw(a.url) as late, Client(a.url, on_notice=notices.append) as client:
            assert (await late.recv())["code"] == "engine_missing"
            thread = uuid7()
            await client.post(thread, "are you there?")
            await until(client, thread, type="request.queued")
            async with open_store(postgres_url) as store:
                gpu = Presence(store, presence_name("gpu"), lease=LEASE)
                await gpu.enter()
                beating = asyncio.create_task(gpu.run())
                await tell(store, STARTED)
                assert (await late.until("notice"))[-1]["code"] == "engine_ready"
                assert (await http(f"{a.url}/readyz")).json["checks"]["engine"] == "ok"
                assert a.context == 512
                info = (await http(f"{a.url}/api/info")).json
                assert (info["engine"], info["model"]["name"]) == ("ready", "m")
                beating.cancel()  # killed
            assert (await late.until("notice"))[-1]["code"] == "engine_missing"
            await asyncio.sleep(LEASE)
        lost = [e async for e in b.store.read(types=("worker.lost",))]
        assert [event.stream for event in lost] == ["worker/gpu"]
    assert "engine_missing" in [notice.code for notice in notices]


async def test_a_worker_that_says_goodbye_is_not_lost(postgres_url: str) -> None:
    async with node(postgres_url, None) as a, open_store(postgres_url) as store:
        gpu = Presence(store, presence_name("gpu"), lease=LEASE)
        await gpu.enter()
        await tell(store, STARTED)
        async with raw(a.url) as client:
            await true(lambda: a.engine == "ready")
            await tell(store, WorkerDrained(worker="gpu"))
            await gpu.leave()
            assert (await client.until("notice"))[-1]["code"] == "engine_missing"
        await asyncio.sleep(2 * LEASE)
        assert [e async for e in store.read(types=("worker.lost",))] == []


async def test_overdue_requests_fail_without_any_engine(postgres_url: str, tmp_path: Path) -> None:
    file, thread = tmp_path / "chat.py", uuid7()
    file.write_text(
        "from app import *\n@on_message\nasync def main(message):\n"
        "    await Message().stream_from(llm.chat('x', timeout=0.3))\n"
    )
    async with node(postgres_url, file) as a, Client(a.url) as client:
        assert (await http(f"{a.url}/readyz")).json["checks"]["engine"] == "ok"  # not needed
        await client.post(thread, "go")
        await until(client, thread, type="run.failed")


# ------------------------------------------------------------------- a database that is away


@pytest.fixture
async def own() -> AsyncIterator[tuple[Cluster, str]]:
    """A Postgres server of this test's own, to be stopped."""
    with cluster(fsync="off") as running:
        yield running, await new_database(running)


async def test_readiness_while_the_database_is_away(
    own: tuple[Cluster, str], tmp_path: Path
) -> None:
    server, url = own
    thread = uuid7()
    async with node(url, chat_file(tmp_path)) as a, Client(a.url) as client:
        await client.post(thread, "word 100")
        await asyncio.to_thread(server.stop, "immediate")
        while (await http(f"{a.url}/readyz")).status == 200:  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.1)
        begun = time.monotonic()
        answer = await http(f"{a.url}/readyz")
        assert (answer.status, time.monotonic() - begun < 3) == (503, True)
        assert answer.json["checks"]["log"] != "ok"
        assert (await http(f"{a.url}/healthz")).status == 200
        await asyncio.sleep(2 * LEASE)
        reason = (await http(f"{a.url}/readyz")).json["checks"]["log"]
        assert "Postgres does not answer" in reason
        posting = asyncio.create_task(client.post(thread, "fast 1"))
        await asyncio.to_thread(server.start, fsync="off")
        while (await http(f"{a.url}/readyz")).status != 200:  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.2)
        await posting
        items = await until(client, thread, type="run.completed", times=2)
        assert "run.interrupted" not in [item.type for item in items]

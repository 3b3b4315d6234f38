"""Read models in Postgres: one leads, another takes over, and the database may go away."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import EverlogError, StartupError
from app.events import catalogue as c
from app.events import pg
from app.events.codec import new
from app.events.memory import MemoryStore
from app.events.open import open_store
from app.events.store import Append
from app.projections import postgres as backend
from app.projections import rebuild
from app.projections import views as views_module
from app.projections.database import Trouble
from app.projections.history import History as HistoryProjection
from app.projections.views import Views, named
from tests.projections.histories import History, histories, write
from tests.projections.test_runner import ROOT, errors_are, long_log
from tests.support.postgres import Cluster, cluster, new_database
from tests.support.projections import apart, assert_rebuild_equals_live, new_schema

TAKEOVER_SECONDS = 3.0


@pytest.fixture
def fragile() -> Iterator[Cluster]:
    """A server that a test may stop."""
    with cluster(fsync="off") as running:
        yield running


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    connection: Any = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def leaders(url: str) -> list[int]:
    """Process ids of the server that hold a lead."""
    query = """
        SELECT DISTINCT l.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
          AND a.application_name = 'everlog views (run)' AND a.state = 'idle'"""
    async with connected(url) as connection:
        return [pid for (pid,) in await connection.fetch(query)]


async def post(store: MemoryStore, text: str, thread: str = "t0") -> int:
    message = c.MessagePosted(message=f"new {text}", role="user", content=text)
    await store.append(Append(stream=f"thread/{thread}", events=[new(message)]))
    return await store.head()


async def test_one_leads_and_the_other_takes_over_at_once(postgres_url: str) -> None:
    async with MemoryStore() as store, Views.open(store, postgres_url) as second:
        async with Views.open(store, postgres_url) as first:
            await write(store, long_log(5, 20).events)
            await first.reached(await store.head())
            await second.reached(await store.head())
            assert first._runner.leading != second._runner.leading
            assert len(await leaders(postgres_url)) == 1
            assert await first.threads(owner="local") == await second.threads(owner="local")
        head = await post(store, "hello")
        async with asyncio.timeout(TAKEOVER_SECONDS):
            await second.reached(head)
        assert second._runner.leading
        await assert_rebuild_equals_live(store, postgres_url)


async def test_a_lead_that_is_lost_is_noticed_before_the_next_commit(postgres_url: str) -> None:
    async with (
        MemoryStore() as store,
        Views.open(store, postgres_url) as one,
        Views.open(store, postgres_url) as two,
    ):
        log = long_log(5, 20).events
        for done in range(0, len(log), 25):
            await write(store, log[done : done + 25])
            for pid in await leaders(postgres_url):
                async with connected(postgres_url) as connection:
                    await connection.execute("SELECT pg_terminate_backend($1)", pid)
            async with asyncio.timeout(2 * TAKEOVER_SECONDS):
                await one.reached(await store.head())
                await two.reached(await store.head())
        await assert_rebuild_equals_live(store, postgres_url)


CHILD = """
import asyncio, sys
from app.events.open import open_store
from app.projections import postgres
from app.projections.views import Views

postgres.IDLE_SECONDS = 1.5

async def main():
    async with open_store(sys.argv[1], read_only=True) as store:
        async with Views.open(store, sys.argv[2]) as views:
            await views.reached(await store.head())
            print("leading" if views._runner.leading else "not", flush=True)
            await asyncio.sleep(600)

asyncio.run(main())
"""


def leader(database: str, url: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, database, url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"leading\n"
    return process


@pytest.mark.crash
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_process_that_dies_or_freezes_is_replaced(
    tmp_path: Any, postgres_url: str, sign: signal.Signals
) -> None:
    database = str(tmp_path / "log.db")
    async with open_store(database, synchronous="normal") as store:
        await write(store, long_log(5, 20).events)
        process = leader(database, postgres_url)
        try:
            async with Views.open(store, postgres_url) as views:
                await views.reached(await store.head())
                assert not views._runner.leading
                process.send_signal(sign)
                began = time.monotonic()
                message = c.MessagePosted(message="new", role="user", content="hello")
                await store.append(Append(stream="thread/t0", events=[new(message)]))
                async with asyncio.timeout(2 * TAKEOVER_SECONDS):
                    await views.reached(await store.head())
                assert views._runner.leading
                assert time.monotonic() - began < TAKEOVER_SECONDS + 1.5
                process.send_signal(signal.SIGCONT)  # what it does now changes nothing
                await asyncio.sleep(0.2)
                await store.append(Append(stream="thread/t1", events=[new(message)]))
                await views.reached(await store.head())
        finally:
            process.kill()
            process.communicate()
        await assert_rebuild_equals_live(store, postgres_url)


@pytest.mark.crash
async def test_the_database_goes_away_and_comes_back(fragile: Cluster) -> None:
    url = await new_database(fragile)
    async with MemoryStore() as store, Views.open(store, url) as views:
        log = long_log(5, 20).events
        await write(store, log[:40])
        await views.reached(await store.head())
        for mode, done in (("immediate", 40), ("fast", 80)):
            await asyncio.to_thread(fragile.stop, mode)
            await write(store, log[done : done + 40])
            began = time.monotonic()
            with pytest.raises(Trouble):
                await views.threads(owner="local")
            with pytest.raises(EverlogError):
                await views.rebuild()
            assert time.monotonic() - began < 2
            await asyncio.sleep(0.5)
            assert views._runner.trouble is not None
            await asyncio.to_thread(fragile.start, fsync="off")
            async with asyncio.timeout(5):
                await views.reached(await store.head())
            assert await views.threads(owner="local")
            await errors_are(views, set())
        await assert_rebuild_equals_live(store, url)


async def test_a_database_that_cannot_be_opened(postgres: Cluster, postgres_url: str) -> None:
    base = postgres_url.rpartition("/")[0]
    async with MemoryStore() as store:
        for url in (
            f"{base}/no_such_database",
            "postgresql://everlog@127.0.0.1:1/test",
            f"{postgres_url}?search_path=no_such_schema",
        ):
            with pytest.raises(StartupError) as caught:
                async with Views.open(store, url):
                    pass
            assert caught.value.hint


async def test_every_schema_has_its_own(postgres_url: str) -> None:
    _, other = await new_schema(postgres_url)
    async with (
        MemoryStore() as store,
        MemoryStore() as another,
        Views.open(store, postgres_url) as here,
        Views.open(another, other) as there,
    ):
        await write(store, long_log(3, 3).events)
        await here.reached(await store.head())
        await there.reached(0)
        assert here._runner.leading and there._runner.leading
        assert len(await here.threads(owner=None)) == 3
        assert await there.threads(owner=None) == []
        await there.rebuild()
        assert len(await here.threads(owner=None)) == 3


async def test_one_rebuild_at_a_time(postgres_url: str) -> None:
    async with MemoryStore() as store, Views.open(store, postgres_url) as views:
        await write(store, long_log(3, 5).events)
        await views.reached(await store.head())
        other = rebuild._Filler(postgres_url, named(["timeline"]), store.incarnation)
        apart(other.begin)
        with pytest.raises(EverlogError, match="timeline is being rebuilt"):
            await views.rebuild()
        assert (await views.rebuild(["history"])).generations == {"history": 2}
        apart(other._connection.close)  # it dies, and is dead at once
        assert (await views.rebuild(["timeline"])).generations == {"timeline": 3}


async def test_a_server_that_never_answers(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for long, not even behind others."""
    monkeypatch.setattr(views_module, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(pg, "CONNECT_SECONDS", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))  # takes connections, says nothing
    port = listener.getsockname()[1]
    async with MemoryStore() as store, Views.open(store, postgres_url) as views:
        views._where = f"postgresql://everlog@127.0.0.1:{port}/test"
        began = time.monotonic()
        reads = [views.threads(owner="local") for _ in range(40)]
        found = await asyncio.gather(*reads, return_exceptions=True)
        assert {type(error) for error in found} == {Trouble}
        assert time.monotonic() - began < 2
        views._where = postgres_url
        await asyncio.sleep(0.25)
        assert await views.threads(owner="local") == []
    listener.close()


async def test_text_postgres_cannot_store(postgres_url: str) -> None:
    log = History()
    log.ask()
    log.add(c.MessagePosted(message="zero", role="user", content="zero \0byte"))
    log.add(c.MessagePosted(message="m\0", role="user", content="hidden by the next"))
    log.add(c.MessagePosted(message="m\ufffd", role="user", content="the same id, nearly"))
    log.add(c.ThreadRenamed(title="\0title"))
    log.generate("q1", "one\0", "two")
    log.move("q1", "request.failed", text="\0")
    log.add(c.MessagePosted(message="long", role="user", content="word " * 500_000))
    log.add(c.MessagePosted(message="wide", role="user", content="x" * 1_000_000))
    log.raw("thread/t", "message.posted", b'{"message": "\\u0000"}')
    async with MemoryStore() as store, Views.open(store, postgres_url) as views:
        await write(store, log.events)
        await views.reached(len(log.events), "requests")
        with pytest.raises(EverlogError, match="stands still"):
            await views.reached(len(log.events), "history")
        row = await views.thread("t")
        assert row is not None and row.title == "\ufffdtitle"
        assert [row.id for row in await views.threads(owner=None, search="byte")] == ["t"]
        assert await views.timeline("t")


async def test_versions_side_by_side(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of the next version takes over while one of this version still runs."""
    async with MemoryStore() as store, Views.open(store, postgres_url) as old:
        await write(store, (log := long_log(3, 5)).events[:20])
        await old.reached(await store.head())
        history = old._runner._projections[0]
        monkeypatch.setattr(history, "version", 1)
        monkeypatch.setattr(HistoryProjection, "version", 2)
        async with Views.open(store, postgres_url) as fresh:
            await write(store, log.events[20:])
            await fresh.reached(await store.head(), "history")
            await old.reached(await store.head())
            assert fresh._runner.leading and old._runner.leading
            with pytest.raises(EverlogError, match="another version"):
                await old.reached(await store.head(), "history")
            await assert_rebuild_equals_live(store, postgres_url)


async def test_long_reads_do_not_stop_a_rebuild(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "LOCK_SECONDS", 1.0)
    async with MemoryStore() as store, Views.open(store, postgres_url) as views:
        await write(store, long_log(3, 5).events)
        await views.reached(await store.head())
        async with connected(postgres_url) as reader, reader.transaction():
            await reader.fetch("SELECT * FROM history_1_thread, timeline_1_span")
            done = await views.rebuild()
            assert set(done.generations.values()) == {2}
            assert len(await views.threads(owner="local")) == 3
        await views.rebuild()  # what could not be dropped then is dropped now
        async with connected(postgres_url) as connection:
            left = await connection.fetchval("SELECT to_regclass('history_1_thread')::text")
        assert left is None


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(log=histories(), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
async def test_rebuilt_equals_live(postgres_url: str, log: History, sizes: list[int]) -> None:
    """Live: any batches, with a restart between any two of them."""
    _, url = await new_schema(postgres_url)
    async with MemoryStore() as store:
        done = 0
        while done < len(log.events):
            size = sizes[done % len(sizes)] * (1 + done)
            await write(store, log.events[done : done + size])
            done += size
            async with Views.open(store, url) as views:
                await views.reached(await store.head())
        await assert_rebuild_equals_live(store, url)

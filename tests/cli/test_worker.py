"""`everlog worker` in real processes: one Postgres, an edge without an engine, two workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner

from app.cli import everlog
from app.events import codec
from app.events.catalogue import RequestClaimed, TokensGenerated
from app.events.envelope import Event
from app.events.ids import uuid7
from app.events.open import open_store
from app.events.store import EventStore
from app.transport.client import Client
from app.transport.protocol import Item
from tests.cli.conftest import child
from tests.engine.control.lab import Result
from tests.support.postgres import Cluster, new_database
from tests.support.server import free_port

pytestmark = [pytest.mark.crash, pytest.mark.model, pytest.mark.timeout(300)]

ENV = {
    **os.environ,
    "EVERLOG_SERVER__LEASE_SECONDS": "2",
    "EVERLOG_ENGINE__LEASE_SECONDS": "2",
    "EVERLOG_ENGINE__MAX_CONTEXT": "512",
    "EVERLOG_ENGINE__THREADS": "1",
    "EVERLOG_ENGINE__KV_MEMORY": str(256 << 20),
    "EVERLOG_LOG__FORMAT": "text",
}
PARAMS = {"max_tokens": 40, "ignore_eos": True}
ENDS = ("request.finished", "request.failed", "request.cancelled")


class Process:
    """A command that says when it is ready."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], output: Path) -> None:
        self.name = name
        self.process = process
        self.output = output

    def ready(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while "ready in" not in self.text():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def text(self) -> str:
        return self.output.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextlib.contextmanager
def started(folder: Path, name: str, *args: str) -> Iterator[Process]:
    output = folder / f"{name}.out"
    with output.open("wb") as out, child(*args, env=ENV, stdout=out, stderr=out) as process:
        yield Process(name, process, output)


@contextlib.asynccontextmanager
async def house(url: str, folder: Path) -> AsyncIterator[tuple[Client, EventStore, list[Process]]]:
    """An edge, two workers, and a view of the log."""
    port = free_port()
    with (
        started(
            folder, "edge", "serve", "--no-engine", "--port", str(port), "--database", url
        ) as e,
        started(folder, "w1", "worker", "--name", "w1", "--database", url) as w1,
        started(folder, "w2", "worker", "--name", "w2", "--database", url) as w2,
    ):
        for process in (e, w1, w2):
            await asyncio.to_thread(process.ready)
        async with (
            Client(f"http://127.0.0.1:{port}", patience=60) as client,
            open_store(url, read_only=True) as store,
        ):
            yield client, store, [e, w1, w2]


async def ask(client: Client, prompts: int) -> list[str]:
    threads = [uuid7() for _ in range(prompts)]
    for number, thread in enumerate(threads):
        await client.post(thread, f"Tell me story number {number}.", params=PARAMS)
    return threads


async def until(client: Client, thread: str, *types: str, times: int = 1) -> None:
    async with asyncio.timeout(120), contextlib.aclosing(client.follow(thread)) as following:
        async for item in following:
            if isinstance(item, Item) and item.type in types:
                times -= 1
                if times == 0:
                    return


async def requests(store: EventStore, threads: list[str]) -> list[list[Event]]:
    """Events of each thread's request."""
    streams = [[e async for e in store.read(stream=f"thread/{t}")] for t in threads]
    return [[e for e in events if e.request is not None] for events in streams]


def workers(events: list[Event]) -> list[str]:
    """Who claimed a request, one after the other."""
    return [p.worker for e in events if isinstance(p := codec.decode(e), RequestClaimed)]


def one_epoch_after_another(events: list[Event]) -> None:
    """No token of a claim comes after the next claim."""
    epoch = 0
    for event in events:
        payload = codec.decode(event)
        if isinstance(payload, RequestClaimed):
            epoch = payload.epoch
        elif isinstance(payload, TokensGenerated):
            assert payload.epoch == epoch


async def embeddings_are_shared(edge: Process, store: EventStore) -> None:
    """An edge without an engine has texts read by all workers."""
    url = re.search(r"http://[\d.:]+", edge.text())
    assert url is not None
    async with httpx2.AsyncClient(base_url=url[0], timeout=60) as client:
        texts = [f"This is document number {n}." for n in range(24)]
        answer = await client.post("/v1/embeddings", json={"input": texts})
    assert answer.status_code == 200, answer.text
    vectors = [each["embedding"] for each in answer.json()["data"]]
    assert [len(each) for each in vectors] == [576] * 24
    stream = f"request/{answer.headers['x-request-id']}"
    events = [e async for e in store.read(stream=stream)]
    assert set(workers(events)) == {"w1", "w2"}


async def test_workers_share_take_over_and_come_back(postgres: Cluster, tmp_path: Path) -> None:
    url = await new_database(postgres)
    async with house(url, tmp_path) as (client, store, (edge, w1, w2)):
        threads = await ask(client, 8)
        for thread in threads:
            await until(client, thread, *ENDS)
        undisturbed = [Result(events).check() for events in await requests(store, threads)]
        assert {name for r in undisturbed for name in workers(r.events)} == {"w1", "w2"}

        await embeddings_are_shared(edge, store)

        again = await ask(client, 8)
        for thread in again:
            await until(client, thread, "tokens.generated", times=3)
        w1.send(signal.SIGSTOP)
        await asyncio.sleep(5)  # longer than its lease
        w1.send(signal.SIGCONT)
        for thread in again:
            await until(client, thread, *ENDS)
        results = [Result(events).check() for events in await requests(store, again)]
        assert [r.text for r in results] == [r.text for r in undisturbed]
        for result in results:
            one_epoch_after_another(result.events)
        moved = [r for r in results if r.types.count("request.abandoned")]
        assert moved, "the stopped worker held nothing: the test proves nothing"
        assert any(workers(r.events)[0] == "w1" and "w2" in workers(r.events) for r in moved)

        more = await ask(client, 6)
        for thread in more:
            await until(client, thread, "tokens.generated", times=2)
        w2.send(signal.SIGKILL)
        w1.send(signal.SIGTERM)  # nobody is left
        assert await asyncio.to_thread(w1.process.wait, 30) == 0, w1.text()
        async with asyncio.timeout(30):
            async for events in store.follow(types=("worker.lost",)):
                if events[-1].stream == "worker/w2":
                    break
        with started(tmp_path, "w3", "worker", "--database", url):
            for thread in more:
                await until(client, thread, *ENDS)
        results = [Result(events).check() for events in await requests(store, more)]
        assert [r.text for r in results] == [r.text for r in undisturbed[:6]]
        types = [e.type async for e in store.read(stream="worker/w1")]
        assert types == ["worker.started", "worker.lost", "worker.started", "worker.drained"]
        lost = [e.stream async for e in store.read(types=("worker.lost",))]
        assert lost == ["worker/w1", "worker/w2"]
        edge.send(signal.SIGTERM)
        assert await asyncio.to_thread(edge.process.wait, 30) == 0, edge.text()


async def test_an_answer_goes_on_when_its_edge_and_its_worker_die(
    postgres: Cluster, tmp_path: Path
) -> None:
    """The client goes to another edge; the answer completes there, once."""
    url = await new_database(postgres)
    port = free_port()
    edge = ("serve", "--no-engine", "--port", str(port), "--database", url)
    async with house(url, tmp_path) as (client, store, (first, w1, w2)):
        (whole,) = await ask(client, 1)
        await until(client, whole, "run.completed")
        with started(tmp_path, "second", *edge) as second:
            await asyncio.to_thread(second.ready)
            (thread,) = await ask(client, 1)
            await until(client, thread, "tokens.generated", times=5)
            (events,) = await requests(store, [thread])
            holder = {"w1": w1, "w2": w2}[workers(events)[0]]
            for process in (first, holder):
                process.send(signal.SIGKILL)
            async with Client(f"http://127.0.0.1:{port}", patience=60) as other:
                await other.post(thread, "And then?", params=PARAMS)  # waits for its turn
                await until(other, thread, "run.completed", times=2)
            types = [e.type async for e in store.read(stream=f"thread/{thread}")]
            assert types.count("run.resumed") == 1
            assert types.count("run.started") == types.count("run.completed") == 2
            asked, again = await requests(store, [whole, thread])
            one = [e for e in again if e.request == again[0].request]
            result = Result(one).check()
            assert result.text == Result(asked).check().text
            assert len(set(workers(one))) == 2


async def test_names(postgres: Cluster, tmp_path: Path) -> None:
    url = await new_database(postgres)
    with started(tmp_path, "one", "worker", "--database", url) as one:
        await asyncio.to_thread(one.ready)
        with started(tmp_path, "two", "worker", "--database", url) as two:
            await asyncio.to_thread(two.ready)
            names = [re.search(r"worker +(\S+)\n", p.text()) for p in (one, two)]
            first, second = (found[1] for found in names if found)
            assert first != second
            with started(tmp_path, "three", "worker", "--database", url, "--name", first) as three:
                assert await asyncio.to_thread(three.process.wait, 60) == 3
                assert f"'{first}'" in three.text()
            one.send(signal.SIGKILL)
            await asyncio.to_thread(one.process.wait)
            with started(tmp_path, "four", "worker", "--database", url) as four:
                began = time.monotonic()
                await asyncio.to_thread(four.ready)
                assert f"{first}\n" in four.text()
                assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (["--database", "sqlite:///x.db"], "database.url"),
        (["--database", "memory:"], "database.url"),
        (["--database", "postgresql://localhost/x", "--name", "a b"], "--name"),
        (["--database", "postgresql://localhost/x", "--name", ""], "--name"),
    ],
)
def test_wrong_usage(args: list[str], field: str) -> None:
    done = CliRunner().invoke(everlog, ["worker", *args])
    assert done.exit_code == 2
    assert field in done.output


def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    url = f"postgresql://everlog:secret@127.0.0.1:{free_port()}/log"
    with started(tmp_path, "w", "worker", "--database", url, "--name", "w") as worker:
        assert worker.process.wait(60) == 3
        assert "secret" not in worker.text()
        assert "127.0.0.1" in worker.text()


def test_the_doctor_examines_a_server(postgres: Cluster) -> None:
    def checks(url: str) -> dict[str, Any]:
        done = CliRunner().invoke(everlog, ["doctor", "--json", "--database", url])
        return {check["name"]: check for check in json.loads(done.stdout)["checks"]}

    url = postgres.new_database()
    found = checks(url)
    assert found["database"]["state"] == found["postgres"]["state"] == "good"
    assert "due" in found["schema"]["finding"]
    migrated = CliRunner().invoke(everlog, ["migrate", "--json", "--database", url])
    assert json.loads(migrated.stdout)["applied"]
    assert "up to date" in checks(url)["schema"]["finding"]
    due = CliRunner().invoke(everlog, ["migrate", "--check", "--database", url])
    assert due.exit_code == 0
    nobody = f"postgresql://everlog:secret@127.0.0.1:{free_port()}/log"
    missing = checks(nobody)["database"]
    assert missing["state"] == "bad"
    assert "secret" not in json.dumps(missing)

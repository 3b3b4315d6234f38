"""Two edges, two workers, one Postgres: any of them may die in mid-answer."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from app.events.envelope import Event
from app.events.open import open_store
from app.events.verify import verify
from tests.e2e.chat import Chat
from tests.support.balancer import Balancer, balancing
from tests.support.postgres import Cluster
from tests.support.server import Server, Worker

pytestmark = [
    pytest.mark.browser,
    pytest.mark.model,
    pytest.mark.crash,
    pytest.mark.timeout(400),
]

QUESTION = "Tell me a long story about a ship, a storm and a lighthouse."
ENV = {
    "EVERLOG_ENGINE__THREADS": "1",
    "EVERLOG_ENGINE__LEASE_SECONDS": "3",
    "EVERLOG_SERVER__LEASE_SECONDS": "3",
    "EVERLOG_CHAT__MAX_TOKENS": "160",
}


class Deployment:
    """What runs: edges behind a balancer, workers, and the log's URL."""

    def __init__(self, url: str, edges: list[Server], workers: list[Worker], front: Balancer):
        self.url, self.edges, self.workers, self.front = url, edges, workers, front

    def events(self, stream: str | None = None) -> list[Event]:
        """All events of a stream as they are in the log now. Not from a running loop."""

        async def read() -> list[Event]:
            async with open_store(self.url, read_only=True) as store:
                return [event async for event in store.read(stream=stream)]

        return in_a_loop(read)

    def sound(self) -> bool:
        """Whether the log verifies."""

        async def check() -> bool:
            async with open_store(self.url, read_only=True) as store:
                return (await verify(store)).ok

        return in_a_loop(check)


def in_a_loop(work):  # type: ignore[no-untyped-def]
    """Run in a thread with a loop of its own: Playwright keeps one running in this one."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result()


@pytest.fixture(scope="module")
def deployment(
    built_ui: None, postgres: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder: Path = tmp_path_factory.mktemp("cluster")
    url: str = in_a_loop(lambda: _new(postgres))
    edges = [
        Server(url, "--no-engine", env=ENV, output=folder / f"edge{at}.out") for at in range(2)
    ]
    workers = [Worker(folder, url, f"worker{at}", env=ENV) for at in range(2)]
    with ExitStack() as stack:
        for process in (*edges, *workers):
            stack.callback(process.gone)
        for edge in edges:
            edge.start()
        for worker in workers:
            worker.start()
        front = stack.enter_context(balancing(*(edge.port for edge in edges)))
        yield Deployment(url, edges, workers, front)


async def _new(postgres: Cluster) -> str:
    from tests.support.postgres import new_database

    return await new_database(postgres)


def test_edge_and_worker_killed_in_mid_answer(deployment: Deployment, browser: Browser) -> None:
    """The answer is completed by the others, once; the page only shows that it reconnected."""
    page = browser.new_context(base_url=deployment.front.url).new_page()
    page.goto("/")
    chat = Chat(page)
    chat.say(QUESTION)
    expect(chat.answers.last.locator(".md")).to_have_text(re.compile(r"(\w+\W+){12}"))
    stream = f"thread/{chat.thread}"
    claimed = [e for e in deployment.events(stream) if e.type == "request.claimed"]
    holder = json.loads(claimed[-1].data)["worker"]
    doomed = next(worker for worker in deployment.workers if worker.name == holder)
    seen = chat.shown()
    deployment.edges[0].kill()
    doomed.kill()
    chat.idle(1, timeout=120_000)
    expect(chat.banner).to_have_count(0)
    assert deployment.front.served[-1] == deployment.edges[1].port
    answer = chat.shown()
    assert answer.startswith(seen)
    assert len(answer) > len(seen)

    events = deployment.events(stream)
    types = [event.type for event in events]
    for once in ("message.posted", "run.started", "request.queued", "request.finished"):
        assert types.count(once) == 1, types
    assert types.count("run.resumed") == 1
    assert types.count("run.completed") == 1
    claims = [json.loads(e.data) for e in events if e.type == "request.claimed"]
    assert [claim["epoch"] for claim in claims] == list(range(1, len(claims) + 1))
    assert claims[-1]["worker"] != holder
    finished = json.loads(next(e for e in events if e.type == "request.finished").data)
    batches = [json.loads(e.data) for e in events if e.type == "tokens.generated"]
    assert "".join(batch["text"] for batch in batches) == finished["text"]
    assert [batch["batch"] for batch in batches] == list(range(len(batches)))
    with urllib.request.urlopen(
        f"{deployment.edges[1].url}/api/threads/{chat.thread}", timeout=10
    ) as response:
        messages = json.load(response)["messages"]
    assert messages[-1]["content"] == finished["text"]
    assert deployment.sound()
    page.reload()
    expect(chat.answers).to_have_count(1)
    assert chat.shown() == answer

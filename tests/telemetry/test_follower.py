"""The export: real receivers, real logs, and the service with a chat."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.config import TelemetryConfig
from app.errors import StartupError
from app.events import catalogue as c
from app.events.codec import decode, new
from app.events.ids import uuid7
from app.events.open import open_store
from app.events.store import Append, EventStore
from app.projections.database import Where
from app.telemetry import follower
from app.telemetry.follower import Telemetry
from app.telemetry.otlp import Exporter
from app.telemetry.place import Keeper
from app.telemetry.spans import span_id, trace_id
from tests.support.server import Server, free_port, running
from tests.telemetry.receiver import Received, Receiver, receiving
from tests.transport.serving import http, raw, serving

TOOLS = """
from app.chat.hooks import on_message
from app.chat.message import Message
from app.chat.step import step

@step(type="tool")
async def look_up(word):
    return f"{word} is a secret"

@on_message
async def main(message):
    if message.content == "fail":
        raise ValueError("a secret")
    await Message(await look_up(message.content)).send()
"""


async def begin(store: EventStore, run: str) -> None:
    """A run begins."""
    await _append(store, c.RunStarted(run=run, hook="on_message", node="n"), run)


async def end(store: EventStore, *runs: str) -> None:
    """Runs end."""
    for run in runs:
        await _append(store, c.RunCompleted(run=run), run)


async def _append(store: EventStore, payload: c.Payload, run: str) -> None:
    await store.append(Append(stream=f"thread/{run[0]}", events=[new(payload, run=run)]))


@contextlib.asynccontextmanager
async def exporting(
    store: EventStore, where: Where | None, url: str, *, node: str = "n"
) -> AsyncIterator[Telemetry]:
    """Export a log for the time of the block."""
    made = Telemetry(store, Keeper(where), Exporter(url, node=node), every=0.02)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def began(telemetry: Telemetry) -> None:
    """Wait until it knows its place."""
    async with asyncio.timeout(10):
        while telemetry._seq is None:  # noqa: ASYNC110 - a test may poll
            await asyncio.sleep(0.01)


async def runs(receiver: Receiver, *names: str) -> list[Received]:
    """Wait until the spans of these runs are there."""
    wanted = {f"{span_id('run', name):016x}" for name in names}
    return await asyncio.to_thread(
        receiver.until, lambda spans: wanted <= {span.id for span in spans}
    )


async def test_a_chat(tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=me")
    file = tmp_path / "chat.py"
    file.write_text(TOOLS)
    telemetry = TelemetryConfig(endpoint=receiver.url)
    async with serving(tmp_path, file=file, telemetry=telemetry) as service:
        async with raw(service.url) as client:
            thread = uuid7()
            for content in ("Mona", "fail"):
                post = {"t": "post", "id": uuid7(), "thread": thread, "content": content}
                await client.send(post)
                await client.until("ack")
            spans = await asyncio.to_thread(
                receiver.until,
                lambda spans: sum(span.name == "on_message" for span in spans) == 2,
            )
        started = await service.store.fetch(types=["run.started"])
        page = (await http(f"{service.url}/metrics")).body.decode()
        assert "everlog_telemetry_failed 0.0" in page
        assert re.search(r"everlog_telemetry_lag_events \d+\.0", page)
    good, bad = (span for span in spans if span.name == "on_message")
    (tool,) = (span for span in spans if span.name == "execute_tool look_up")
    events = [e for e in started if decode(e).hook == "on_message"]  # type: ignore[union-attr]
    assert good.trace == f"{trace_id('run', events[0].run or ''):032x}"
    assert good.start == events[0].time
    assert (tool.trace, tool.parent, good.parent) == (good.trace, good.id, "")
    assert good.start <= tool.start <= tool.end <= good.end
    assert tool.attributes["gen_ai.tool.name"] == "look_up"
    assert good.attributes["gen_ai.conversation.id"] == thread
    assert (good.failed, bad.failed, bad.attributes["error.type"]) == (False, True, "ValueError")
    assert "secret" not in repr([vars(span) for span in spans])
    assert good.resource["service.name"] == "everlog"
    assert receiver.headers[0]["x-tenant"] == "me"


async def test_a_restart_goes_on_where_it_was(tmp_path: Path, receiver: Receiver) -> None:
    where = tmp_path / "views"
    async with open_store(f"sqlite:///{tmp_path / 'log.db'}") as store:
        await begin(store, "before")
        await end(store, "before")  # what was there before the first start is not exported
        async with exporting(store, where, receiver.url) as telemetry:
            await began(telemetry)
            await begin(store, "a1")
            await begin(store, "a2")
            await end(store, "a1")
            await runs(receiver, "a1")
        await end(store, "a2")  # nobody looks; it began before
        await begin(store, "b1")
        async with exporting(store, where, receiver.url):
            await end(store, "b1")
            spans = await runs(receiver, "a2", "b1")
    assert [span.attributes["everlog.run.id"] for span in spans] == ["a1", "a2", "b1"]
    assert all(span.end > span.start > 0 for span in spans)


async def test_a_log_in_memory(receiver: Receiver) -> None:
    async with open_store("memory:") as store, exporting(store, None, receiver.url) as telemetry:
        await began(telemetry)
        await begin(store, "a")
        await end(store, "a")
        await runs(receiver, "a")


async def test_a_receiver_that_is_away_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(follower, "RETRY_SECONDS", (0.05, 0.2))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    port, names = free_port(), [f"a{n}" for n in range(20)]
    async with (
        open_store("memory:") as store,
        exporting(store, tmp_path / "views", f"http://127.0.0.1:{port}") as telemetry,
    ):
        await began(telemetry)
        for name in names:
            await begin(store, name)
            await end(store, name)
        async with asyncio.timeout(20):
            while telemetry.trouble is None:  # noqa: ASYNC110 - a test may poll
                await asyncio.sleep(0.01)
        assert "no spans exported" in caplog.text
        with receiving(port) as receiver:
            spans = await runs(receiver, *names)
            assert len(spans) == 20
            receiver.answer = lambda spans: 503
            await begin(store, "b")
            await end(store, "b")
            before = receiver.messages
            await asyncio.to_thread(receiver.until, lambda _: receiver.messages > before)
            receiver.answer = lambda spans: 200
            await runs(receiver, "b")
            async with asyncio.timeout(20):
                while telemetry.trouble is not None:  # noqa: ASYNC110 - a test may poll
                    await asyncio.sleep(0.01)


def test_a_receiver_that_hangs_holds_up_no_end(tmp_path: Path) -> None:
    async def serve_and_end(url: str) -> socket.socket:
        async with (
            serving(tmp_path, telemetry=TelemetryConfig(endpoint=url)) as service,
            raw(service.url) as client,
        ):
            post = {"t": "post", "id": uuid7(), "thread": uuid7(), "content": "fast 1"}
            await client.send(post)
            await client.until("ack")
            return (await asyncio.to_thread(hanging.accept))[0]  # it is being sent

    with socket.create_server(("127.0.0.1", 0)) as hanging:
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        with asyncio.Runner() as runner:
            silent = runner.run(serve_and_end(url))
            began = time.monotonic()
        with silent:
            assert time.monotonic() - began < 3  # the exporter's own patience is 10 s


async def test_one_span_that_is_refused_holds_up_no_other(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    def picky(spans: Sequence[Received]) -> int:
        return 400 if any(s.attributes["everlog.run.id"] == "a3" for s in spans) else 200

    receiver.answer = picky
    async with (
        open_store("memory:") as store,
        exporting(store, tmp_path / "views", receiver.url) as telemetry,
    ):
        await began(telemetry)
        names = [f"a{n}" for n in range(9)]
        for name in names:
            await begin(store, name)
        await end(store, *names)
        names.remove("a3")
        spans = await runs(receiver, *names)
        assert len(spans) == 8
        await end(store, "a3")
    assert "is left out" in caplog.text


async def test_one_node_exports_and_another_takes_its_place(
    postgres_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "STAND_BY_SECONDS", 0.05)
    async with open_store(postgres_url) as store, open_store(postgres_url) as other:
        async with exporting(store, postgres_url, receiver.url, node="one") as first:
            await began(first)
            async with exporting(other, postgres_url, receiver.url, node="two") as second:
                await begin(store, "a1")
                await begin(store, "a2")
                await end(store, "a1")
                await runs(receiver, "a1")
                await asyncio.sleep(0.2)
                assert second._seq is None
        async with exporting(other, postgres_url, receiver.url, node="two"):
            await end(other, "a2")
            spans = await runs(receiver, "a2")
    found = [(s.attributes["everlog.run.id"], s.resource["service.instance.id"]) for s in spans]
    assert found == [("a1", "one"), ("a2", "two")]


def test_what_is_no_url_is_said_at_the_start() -> None:
    for url in ("localhost:4318", "4318", "ftp://x"):
        with pytest.raises(StartupError, match=r"telemetry\.endpoint"):
            Exporter(url, node="n")
    assert Exporter("http://x/base/", node="n").endpoint == "http://x/base/v1/traces"
    assert Exporter("http://x/v1/traces", node="n").endpoint == "http://x/v1/traces"


def test_what_is_not_installed_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(StartupError) as error:
        Exporter("http://x", node="n")
    assert "everlog[otel]" in (error.value.hint or "")


def test_every_attribute_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
    source = (Path(follower.__file__).parent / "attributes.py").read_text()
    for name in re.findall(r'"((?:gen_ai|everlog)\.[a-z_.]+)"', source):
        assert name in page or f"`.{name.split('.', 2)[2]}`" in page, name


@pytest.mark.model
@pytest.mark.crash
def test_generations_of_a_server_that_is_killed(tmp_path: Path, receiver: Receiver) -> None:
    """Also with the receiver away at first: every request is there, whoever was killed."""
    env = {"EVERLOG_TELEMETRY__ENDPOINT": receiver.url, "OTEL_SERVICE_NAME": "mine"}
    ids: set[str] = set()
    receiver.answer = lambda spans: 503
    with running(tmp_path / "log.db", env=env) as server:
        ids |= ask(server, 3)
        server.kill()
        receiver.answer = lambda spans: 200
        server.start()
        ids |= ask(server, 2)
        spans = receiver.until(lambda spans: ids <= {_response(span) for span in spans}, 60)
    done = {_response(span): span for span in spans}
    assert set(done) == ids
    span = done[min(ids)]
    assert span.name.startswith("chat SmolLM2")
    assert span.kind == 3
    assert span.attributes["gen_ai.request.max_tokens"] == 3
    assert span.attributes["gen_ai.usage.output_tokens"] == 3
    assert span.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert "request.started" in span.marks
    assert span.resource["service.name"] == "mine"


def ask(server: Server, times: int) -> set[str]:
    """Some answers; ids of their requests."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    url = f"{server.url}/v1/chat/completions"
    answers = [httpx2.post(url, json=body, timeout=60) for _ in range(times)]
    return {answer.headers["x-request-id"] for answer in answers}


def _response(span: Received) -> str:
    return str(span.attributes["gen_ai.response.id"])

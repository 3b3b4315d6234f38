"""Files and batches of a server, by OpenAI's client. Most of these tests are the engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import openai
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI, OpenAI

from app.cli import everlog
from app.config import ApiConfig, ObjectsConfig
from app.events.catalogue import (
    BatchCancelling,
    BatchClaimed,
    BatchCreated,
    BatchStarted,
    RequestQueued,
)
from app.events.codec import decode
from app.events.ids import uuid7
from app.events.objects import ObjectError
from app.transport import keys
from app.transport.openai.errors import ApiError
from app.transport.openai.library import STREAM, batch_id, file_id
from app.transport.openai.multipart import Begin, End, Form
from app.transport.server import Service
from tests.support.s3 import CREDENTIALS, s3_server
from tests.support.server import Server
from tests.transport.openai.test_edge import Worker
from tests.transport.serving import serving

CHAT = "/v1/chat/completions"


def line(id: str, **body: Any) -> dict[str, Any]:
    about = {"messages": [{"role": "user", "content": f"I am {id}."}], **body}
    return {"custom_id": id, "method": "POST", "url": CHAT, "body": about}


def jsonl(*lines: Any) -> bytes:
    return b"\n".join(
        each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines
    )


# ----------------------------------------------------------------------------------- forms

BYTES = st.binary(max_size=40).filter(lambda data: b"\r\n--X" not in data)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(BYTES, max_size=3), cuts=st.lists(st.integers(1, 30), max_size=40))
def test_a_form_is_the_same_however_it_comes(parts: list[bytes], cuts: list[int]) -> None:
    body = b""
    for number, part in enumerate(parts):
        head = f'--X\r\nContent-Disposition: form-data; name="f{number}"; filename="a b"'
        body += head.encode() + b"\r\nContent-Type: x/y\r\n\r\n" + part + b"\r\n"
    body += b"--X--\r\nbehind"
    form = Form('multipart/form-data; boundary="X"')
    found: list[Any] = []
    for cut in [*cuts, len(body)]:
        piece, body = body[:cut], body[cut:]
        for part in form.feed(piece):
            if isinstance(part, bytes) and found and isinstance(found[-1], bytes):
                found[-1] += part
            else:
                found.append(part)
    assert form.ended
    wanted: list[Any] = []
    for number, part in enumerate(parts):
        wanted += [Begin(f"f{number}", "a b"), *([part] if part else []), End()]
    assert found == wanted


def test_what_is_no_form_is_refused() -> None:
    for header in (None, "", "application/json", "multipart/form-data"):
        with pytest.raises(ApiError, match="multipart/form-data"):
            Form(header)
    with pytest.raises(ApiError, match="no name"):
        list(Form("multipart/form-data; boundary=X").feed(b"--X\r\nA: b\r\n\r\n"))
    with pytest.raises(ApiError, match="too long"):
        list(Form("multipart/form-data; boundary=X").feed(b"--X\r\n" + b"a" * 20_000))


# --------------------------------------------------------------------------------- service


class Engine:
    """Answers every request with what it says, while it is `free`."""

    def __init__(self, service: Service) -> None:
        self.worker = Worker(service)
        self.queued: list[RequestQueued] = []
        self.free = asyncio.Event()
        self.free.set()
        self._more = asyncio.Condition()

    async def run(self) -> None:
        store = self.worker.store
        while True:
            for claim in await store.claim(worker="test", limit=1, lease=30, models=["mine"]):
                queued = decode(claim.queued)
                assert isinstance(queued, RequestQueued)
                async with self._more:
                    self.queued.append(queued)
                    self._more.notify_all()
                await self.free.wait()
                await self.worker.start(claim)
                said = (queued.messages or [])[-1].content
                await self.worker.say(claim, said)
                await self.worker.finish(claim, said)
            await asyncio.sleep(0.005)

    async def seen(self, count: int) -> None:
        """Wait until so many requests were claimed."""
        async with asyncio.timeout(20), self._more:
            await self._more.wait_for(lambda: len(self.queued) >= count)


@contextlib.asynccontextmanager
async def engine(service: Service) -> AsyncIterator[Engine]:
    running = Engine(service)
    task = asyncio.create_task(running.run())
    try:
        yield running
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await service.store.expire(worker="test", reason="drained")


def api(service: Service, key: str = "none") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0)


async def upload(client: AsyncOpenAI, *lines: Any) -> str:
    file = await client.files.create(file=("in.jsonl", jsonl(*lines)), purpose="batch")
    return file.id


async def ended(client: AsyncOpenAI, id: str, seconds: float = 20) -> Any:
    async with asyncio.timeout(seconds):
        while True:
            batch = await client.batches.retrieve(id)
            if batch.status in ("completed", "failed", "cancelled", "expired"):
                return batch
            await asyncio.sleep(0.02)


async def create(client: AsyncOpenAI, file: str, endpoint: Any = CHAT, **more: Any) -> str:
    batch = await client.batches.create(
        input_file_id=file, endpoint=endpoint, completion_window="24h", **more
    )
    return batch.id


async def results(client: AsyncOpenAI, file: str | None) -> list[dict[str, Any]]:
    if file is None:
        return []
    content = await client.files.content(file)
    return [json.loads(text) for text in content.text.split("\n") if text]


async def test_files(service: Service) -> None:
    async with api(service) as client:
        content = jsonl(line("a")) * 3000
        file = await client.files.create(file=("my ä.jsonl", content), purpose="batch")
        assert (file.bytes, file.filename, file.purpose) == (len(content), "my ä.jsonl", "batch")
        assert (await client.files.content(file.id)).content == content
        other = await client.files.create(file=b"x", purpose="batch")
        listed = [each.id async for each in client.files.list(limit=1)]
        assert listed[:2] == [other.id, file.id]
        gone = await client.files.delete(other.id)
        assert gone.deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(other.id)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.files.create(file=b"x", purpose="fine-tune")
        assert refused.value.param == "purpose"
        with pytest.raises(openai.BadRequestError, match="empty"):
            await client.files.create(file=b"", purpose="batch")
        kept = [each.key async for each in service.objects.list("files/")]
        assert [f"files/{each}" for each in (await service.shelf.look()).files] == kept


async def test_a_batch(service: Service) -> None:
    lines = [line(f"id-{n}") for n in range(40)]
    lines[3] = line("id-3", max_tokens=0)
    lines[7]["body"]["n"] = 2
    async with api(service) as client, engine(service) as worked:
        before = await service.store.head()
        file = await upload(client, *lines, b"")
        id = await create(client, file, metadata={"who": "me"})
        batch = await ended(client, id)
        assert batch.status == "completed"
        assert batch.metadata == {"who": "me"}
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (40, 39, 1)
        assert batch.in_progress_at and batch.finalizing_at and batch.completed_at
        good = await results(client, batch.output_file_id)
        assert [each["custom_id"] for each in good] == [f"id-{n}" for n in range(40) if n != 3]
        for each in good:
            body = each["response"]["body"]
            said = body["choices"][-1]["message"]["content"]
            assert (said, each["error"]) == (f"I am {each['custom_id']}.", None)
        assert len(good[6]["response"]["body"]["choices"]) == 2
        (bad,) = await results(client, batch.error_file_id)
        assert bad["custom_id"] == "id-3"
        assert bad["response"]["status_code"] == 400
        assert bad["response"]["body"]["error"]["param"] == "max_tokens"
        assert {each.priority for each in worked.queued} == {-10}
        first = min(worked.queued, key=lambda each: each.metadata["line"])
        about = {"batch": id, "line": 1, "custom_id": "id-0", "endpoint": "chat.completions"}
        assert first.metadata == about
        assert (await client.files.retrieve(batch.output_file_id)).purpose == "batch_output"
        assert (await client.batches.list(limit=1)).data[0].id == id
        types = [e.type for e in await service.store.fetch(after=before, limit=5000)]
        assert types.count("request.queued") == 40
        with pytest.raises(openai.ConflictError):
            await client.batches.cancel(id)


async def test_lines_that_cannot_be_read_fail_it_before_anything_runs(service: Service) -> None:
    async with api(service) as client:
        before = await service.store.head()
        wrong = {**line("d"), "url": "/v1/completions"}
        file = await upload(client, line("a"), b"{", b"", line("a"), wrong)
        batch = await ended(client, await create(client, file))
        assert batch.status == "failed"
        errors = [(each.line, each.code, each.param) for each in batch.errors.data]
        assert errors == [
            (2, "invalid_json_line", None),
            (4, "duplicate_custom_id", "custom_id"),
            (5, "invalid_url", "url"),
        ]
        assert batch.output_file_id is None
        types = {e.type for e in await service.store.fetch(after=before)}
        assert "request.queued" not in types
        empty = await ended(client, await create(client, await upload(client, b"\n")))
        assert [each.code for each in empty.errors.data] == ["empty_file"]


async def test_what_is_wrong_with_a_new_batch_is_said(service: Service) -> None:
    async with api(service) as client:
        file = await upload(client, line("a"))
        for body, param in (
            ({"input_file_id": "file-1"}, "input_file_id"),
            ({"endpoint": "/v1/moderations"}, "endpoint"),
            ({"completion_window": "1h"}, "completion_window"),
            ({"metadata": {"a": "b" * 513}}, "metadata"),
            ({"metadata": {"a" * 65: "b"}}, "metadata"),
            ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ):
            about: Any = {
                "input_file_id": file,
                "endpoint": CHAT,
                "completion_window": "24h",
                **body,
            }
            with pytest.raises(openai.BadRequestError) as refused:
                await client.batches.create(**about)
            assert refused.value.param == param
        with pytest.raises(openai.NotFoundError):
            await client.batches.retrieve("batch_1")


async def test_cancelled_it_keeps_what_is_done(tmp_path: Path) -> None:
    few = ApiConfig(batch_requests=4)
    async with (
        serving(tmp_path, api=few) as service,
        api(service) as client,
        engine(service) as worked,
    ):
        worked.free.clear()
        id = await create(client, await upload(client, *(line(f"id-{n}") for n in range(30))))
        await worked.seen(1)
        worked.free.set()
        await worked.seen(6)
        with pytest.raises(openai.ConflictError):
            await client.files.delete((await client.batches.retrieve(id)).input_file_id)
        assert (await client.batches.cancel(id)).status == "cancelling"
        batch = await ended(client, id)
        assert batch.status == "cancelled"
        assert batch.cancelling_at
        done = await results(client, batch.output_file_id)
        assert 4 <= len(done) == batch.request_counts.completed < 30
        assert not await service.store.leases()
        assert (await client.batches.cancel(id)).status == "cancelled"


async def test_with_its_key_revoked_it_ends(tmp_path: Path) -> None:
    few = ApiConfig(batch_requests=4)
    async with serving(tmp_path, api=few) as service, api(service) as everybody:
        made = await keys.create(service.store, "ann", scopes=["api"])
        await asyncio.sleep(0.1)  # until the server knows it
        async with api(service, made.secret) as client:
            id = await create(client, await upload(client, *(line(f"id-{n}") for n in range(30))))
        async with engine(service) as worked:
            await worked.seen(6)
            worked.free.clear()
            await worked.seen(7)
            await keys.revoke(service.store, "ann")
            batch = await ended(everybody, id)
        assert batch.status == "failed"
        assert [each.code for each in batch.errors.data] == ["invalid_api_key"]
        done = await results(everybody, batch.output_file_id)
        refused = await results(everybody, batch.error_file_id)
        assert 5 <= len(done) < 30 and len(done) + len(refused) == 30
        assert {each["error"]["code"] for each in refused} == {"invalid_api_key"}
        assert not await service.store.leases()
        late = await by_hand(service, everybody, line("a"), owner="key:ann")
        await service.shelf.change(lambda _: [late])
        found = await ended(everybody, batch_id(late.batch))
        assert (found.status, found.request_counts.failed) == ("failed", 1)
        made = await keys.create(service.store, "ann", scopes=["api"])  # the name, not the key
        await asyncio.sleep(0.1)
        async with api(service, made.secret) as client, engine(service):
            id = await create(client, await upload(client, line("b")))
            assert (await ended(client, id)).status == "completed"


async def test_a_file_whose_content_cannot_be_deleted_now(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is still there to be deleted later: nothing is said to be gone that is not."""
    async with api(service) as client:
        before = [each async for each in service.objects.list("files/")]
        file = await upload(client, line("a"))

        async def away(key: str) -> None:
            raise ObjectError("it is away")

        with monkeypatch.context() as patch:
            patch.setattr(service.objects, "delete", away)
            with pytest.raises(openai.InternalServerError):
                await client.with_options(max_retries=0).files.delete(file)
        assert (await client.files.delete(file)).deleted
        assert [each async for each in service.objects.list("files/")] == before


async def test_files_in_s3_are_fetched_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3_server() as endpoint:
        there = ObjectsConfig(
            url="s3://files/a", endpoint=endpoint, path_style=True, presign_seconds=60
        )
        assert httpx2.put(f"{endpoint}/files").status_code == 200  # a bucket
        async with serving(tmp_path, objects=there) as service, api(service) as client:
            content = jsonl(line("a")) * 9
            file = await client.files.create(file=("my ä.jsonl", content), purpose="batch")
            url = f"{service.url}/v1/files/{file.id}/content"
            async with httpx2.AsyncClient() as plain:
                sent = await plain.get(url)
            assert (sent.status_code, sent.headers["cache-control"]) == (307, "no-store")
            assert sent.headers["location"].startswith(f"{endpoint}/files/a/files/")
            assert (await client.files.content(file.id)).content == content


async def by_hand(
    service: Service, client: AsyncOpenAI, *lines: Any, seconds: float = 3600, **more: Any
) -> BatchCreated:
    """What a new batch is to the log."""
    file = (await service.shelf.look()).file(await upload(client, *lines))
    assert file is not None
    about = {"input": file.id, "window": "24h", "owner": "user:local", **more}
    expires = time.time_ns() + int(seconds * 1e9)
    return BatchCreated(batch=uuid7(), endpoint=CHAT, expires=expires, **about)


async def test_what_is_late_has_expired(service: Service) -> None:
    async with api(service) as client:
        batch = await by_hand(service, client, line("a"), line("b"), seconds=1)
        await service.shelf.change(lambda _: [batch])
        found = await ended(client, batch_id(batch.batch))
        assert found.status == "expired"
        late = await results(client, found.error_file_id)
        assert [each["error"]["code"] for each in late] == ["batch_expired"] * 2
        assert found.request_counts.failed == 2
        assert not await service.store.leases()


async def test_cancelled_before_anybody_looked_at_it(service: Service) -> None:
    async with api(service) as client:
        batch = await by_hand(service, client, line("a"), b"{", line("a"))
        cancelling = BatchCancelling(batch=batch.batch)
        await service.shelf.change(lambda _: [batch, cancelling])
        found = await ended(client, batch_id(batch.batch))
        assert (found.status, found.output_file_id, found.error_file_id) == (
            "cancelled",
            None,
            None,
        )


async def test_a_file_whose_object_is_lost(service: Service) -> None:
    async with api(service) as client:
        batch = await by_hand(service, client, line("a"))
        file = (await service.shelf.look()).files[batch.input]
        await service.objects.delete(file.object)
        new = msgspec.structs.replace(batch, batch=uuid7())
        begun = BatchStarted(batch=new.batch, total=1)
        await service.shelf.change(lambda _: [batch, new, begun])
        for each in (batch, new):
            found = await ended(client, batch_id(each.batch))
            assert found.status == "failed"
            assert [error.code for error in found.errors.data] == ["file_missing"]
        with pytest.raises(openai.NotFoundError, match="is gone"):
            await client.files.content(file_id(file.id))


async def test_keys_see_their_own(tmp_path: Path) -> None:
    async with serving(tmp_path, auth="required") as service:
        made = [await keys.create(service.store, name) for name in ("anna", "ben")]
        await asyncio.sleep(0.2)
        async with api(service, made[0].secret) as anna, api(service, made[1].secret) as ben:
            file = await upload(anna, line("a"))
            id = await create(anna, file)
            for asked in (ben.files.retrieve(file), ben.batches.retrieve(id), create(ben, file)):
                with pytest.raises((openai.NotFoundError, openai.BadRequestError)):
                    await asked
            for asked in (ben.files.delete(file), ben.files.content(file), ben.batches.cancel(id)):
                with pytest.raises(openai.NotFoundError):
                    await asked
            assert not [each async for each in ben.files.list()]
            assert not [each async for each in ben.batches.list()]
            assert [each.id async for each in anna.batches.list()] == [id]


async def test_a_server_that_is_started_again_goes_on(tmp_path: Path) -> None:
    few = ApiConfig(batch_requests=4)
    async with (
        serving(tmp_path, api=few) as service,
        api(service) as client,
        engine(service) as worked,
    ):
        id = await create(client, await upload(client, *(line(f"id-{n}") for n in range(30))))
        await worked.seen(8)
    port = int(service.url.rpartition(":")[2])
    async with (
        serving(tmp_path, api=few, port=port) as again,
        api(again) as client,
        engine(again),
    ):
        batch = await ended(client, id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 30)
        assert len([e async for e in again.store.read(types=["request.queued"])]) == 30


@pytest.mark.crash
async def test_when_its_node_is_killed_another_one_goes_on(
    tmp_path: Path, postgres_url: str
) -> None:
    about: dict[str, Any] = {"database": postgres_url, "lease_seconds": 1}
    env = {
        "EVERLOG_SERVER__NODE": "two",
        "EVERLOG_SERVER__LEASE_SECONDS": "1",
        "EVERLOG_OBJECTS__URL": str(tmp_path / "objects"),
        "EVERLOG_API__BATCH_REQUESTS": "4",
    }
    killed = Server(postgres_url, "--no-engine", env=env, output=tmp_path / "two.out")
    async with (
        serving(tmp_path, node="one", **about) as one,
        api(one) as client,
        engine(one) as worked,
    ):
        one.batches.stop()  # so that it is the other one's first
        try:
            await asyncio.to_thread(killed.start, ready=False)
            id = await create(client, await upload(client, *(line(f"id-{n}") for n in range(30))))
            await worked.seen(8)
            worked.free.clear()
            await asyncio.to_thread(killed.kill)
        finally:
            killed.gone()
        worked.free.set()
        async with serving(tmp_path, node="three", **about):
            batch = await ended(client, id, 40)
        assert batch.request_counts.completed == 30
        events = await one.store.fetch(stream=STREAM, limit=1000)
        claims = [decode(e) for e in events if e.type == "batch.claimed"]
        assert [claim.node for claim in claims if isinstance(claim, BatchClaimed)] == [
            "two",
            "three",
        ]
        every = [e async for e in one.store.read(types=["request.queued"])]
        assert len(every) == 30


# -------------------------------------------------------------------------- the real thing


@pytest.mark.crash
@pytest.mark.model
@pytest.mark.timeout(300)
def test_killed_in_the_middle_no_line_is_run_twice(tmp_path: Path) -> None:
    env = {"EVERLOG_ENGINE__DTYPE": "float32", "EVERLOG_API__BATCH_REQUESTS": "3"}
    server = Server(tmp_path / "log.db", env=env)
    server.start()
    try:
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            lines = [
                line(f"id-{n}", max_tokens=4 + n, temperature=0, ignore_eos=True) for n in range(12)
            ]
            given = client.files.create(file=("in.jsonl", jsonl(*lines)), purpose="batch")
            batch = client.batches.create(
                input_file_id=given.id, endpoint=CHAT, completion_window="24h"
            )
            deadline = time.monotonic() + 120
            while client.batches.retrieve(batch.id).request_counts.completed < 3:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            server.kill(signal.SIGKILL)
            server.start()
            while (batch := client.batches.retrieve(batch.id)).status != "completed":
                assert time.monotonic() < deadline, batch
                time.sleep(0.05)
            assert batch.request_counts.completed == 12
            assert batch.output_file_id is not None
            texts = client.files.content(batch.output_file_id).text.splitlines()
            usage = [json.loads(t)["response"]["body"]["usage"] for t in texts]
            assert [each["completion_tokens"] for each in usage] == [4 + n for n in range(12)]
        log = ["events", "--type", "request.queued", "--json", "--database"]
        shown = CliRunner().invoke(everlog, [*log, f"sqlite:///{server.database}"])
        assert len(shown.stdout.splitlines()) == 12
    finally:
        server.gone()

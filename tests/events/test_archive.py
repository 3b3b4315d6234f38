"""The archive: what is moved is read as before, whatever fails on the way."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.events import archive as module
from app.events import catalogue as c
from app.events.archive import (
    STREAMED,
    Archived,
    archive_streamed,
    archive_threads,
    restore,
    sweep,
)
from app.events.codec import new
from app.events.envelope import Event, NewEvent
from app.events.logstore import LogStore
from app.events.memory import MemoryStore
from app.events.moves import Move
from app.events.objects import DirectoryObjects, ObjectError, ObjectMissing, Stored
from app.events.open import open_store
from app.events.seal import head, seal_now
from app.events.store import ANY, Append, Appended, Fence, StoreError
from app.events.transfer import export_events
from app.events.verify import verify

ROOT = Path(__file__).parents[2]

FUTURE = 2**62

Open = Callable[[], AbstractAsyncContextManager[LogStore]]


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    objects = DirectoryObjects(tmp_path / "objects")
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    else:
        url = "memory:" if request.param == "memory" else f"{tmp_path}/log.db"

    @asynccontextmanager
    async def open_log() -> AsyncIterator[LogStore]:
        async with open_store(url, synchronous="normal", objects=objects) as store:
            yield store

    return open_log


@pytest.fixture
async def store(open_log: Open) -> AsyncIterator[LogStore]:
    async with open_log() as store:
        yield store


async def put(store: LogStore, stream: str, *events: NewEvent, fence: Fence | None = None) -> None:
    append = Append(stream=stream, events=events, expected=ANY, fence=fence)
    assert isinstance(await store.append(append), Appended)


async def answer(store: LogStore, thread: str, batches: int = 20, *, ended: bool = True) -> None:
    """A message of a person and a streamed answer with its request."""
    stream, request = f"thread/{thread}", f"q-{thread}"
    await put(
        store,
        stream,
        new(c.ThreadCreated(owner="u", title=thread)),
        new(c.MessagePosted(message="m1", role="user", content="Hello?"), actor="user:u"),
        new(c.RunStarted(run=f"r-{thread}", hook="on_message", node="n"), run=f"r-{thread}"),
        new(
            c.RequestQueued(request=request, params=c.SamplingParams(seed=1), text="x"),
            request=request,
        ),
        new(c.MessageStarted(message=f"a-{thread}", request=request), run=f"r-{thread}"),
    )
    [claimed] = await store.claim(worker="w", limit=1, lease=60)
    fence = Fence(request, claimed.epoch)
    started = c.RequestStarted(request=request, epoch=1, model="m", weights="w", prompt_tokens=1)
    await put(store, stream, new(started, request=request), fence=fence)
    for i in range(batches):
        tokens = c.TokensGenerated(
            request=request, epoch=1, batch=i, index=i, tokens=[i], text=f" word{i}"
        )
        await put(store, stream, new(tokens, request=request), fence=fence)
    if ended:
        finished = c.RequestFinished(
            request=request,
            epoch=1,
            reason="stop",
            text="".join(f" word{i}" for i in range(batches)),
            usage=c.Usage(),
            timings=c.Timings(),
            batches=batches,
            digest="",
        )
        await put(store, stream, new(finished, request=request), fence=fence)
        await put(store, stream, new(c.RunCompleted(run=f"r-{thread}"), run=f"r-{thread}"))


async def everything(store: LogStore, stream: str | None = None) -> list[Event]:
    return [event async for event in store.read(stream=stream)]


async def hot(store: LogStore) -> int:
    return len(await store.hot(until=FUTURE, limit=100_000))


async def forget(store: LogStore) -> None:
    """Keep no recent events in memory, so that reading reads."""
    store._feed.reset(await store.head() + 1)


async def embed(store: LogStore, request: str, *, ended: bool = True) -> None:
    """A text that becomes a vector."""
    stream, epoch = f"request/{request}", 1
    asked = c.RequestQueued(
        request=request, params=c.SamplingParams(), text="x", embed=c.Embedding()
    )
    await put(store, stream, new(asked, request=request))
    [claimed] = await store.claim(worker="w", limit=1, lease=60)
    more: list[c.Payload] = [
        c.RequestStarted(request=request, epoch=epoch, model="m", weights="w", prompt_tokens=1),
        c.RequestEmbedded(
            request=request, epoch=epoch, vector="A" * 3072, dimensions=576, pooling="mean"
        ),
    ]
    if ended:
        more.append(
            c.RequestFinished(
                request=request,
                epoch=epoch,
                reason="stop",
                text="",
                usage=c.Usage(),
                timings=c.Timings(),
                batches=0,
                digest="",
            )
        )
    events = [new(payload, request=request) for payload in more]
    await put(store, stream, *events, fence=Fence(request, claimed.epoch))


# ------------------------------------------------------------------------------ what is the same


async def test_vectors_are_archived_when_their_request_has_ended(store: LogStore) -> None:
    await embed(store, "a")
    await embed(store, "b", ended=False)
    before = await everything(store)
    done = await archive_streamed(store, before=FUTURE)
    assert done.events == 1
    left = [
        event.stream for event, *_ in await store.hot(until=FUTURE, types=("request.embedded",))
    ]
    assert left == ["request/b"]
    await forget(store)
    assert (await everything(store))[: len(before)] == before


async def test_readers_notice_nothing(store: LogStore, tmp_path: Path) -> None:
    for thread in ("a", "b", "c"):
        await answer(store, thread)
        await seal_now(store)
    before = await everything(store)
    streams = {name: await everything(store, name) for name in ("thread/a", "thread/b", "log")}
    root = await head(store)
    rows = await store.rows(after=0, limit=1000)
    done = await archive_streamed(store, before=FUTURE)
    assert (done.events, len(done.segments)) == (60, 1)
    assert await hot(store) == len(before) + 1 - 60
    await forget(store)

    assert (await everything(store))[: len(before)] == before
    for name in ("thread/a", "thread/b"):
        assert await everything(store, name) == streams[name]
    assert (await store.rows(after=0, limit=1000))[: len(rows)] == rows
    for after in range(0, len(before), 7):
        for limit in (1, 3, 25):
            assert await store.fetch(after=after, limit=limit) == [
                e for e in before if e.seq > after
            ][:limit] or after + limit > len(before)
            page = await store.fetch(stream="thread/b", after=after, limit=limit)
            assert page == [e for e in streams["thread/b"] if e.version > after][:limit]
    found = [e async for e in store.read(types=("tokens.generated", "run.started"))]
    assert found == [e for e in before if e.type in ("tokens.generated", "run.started")]
    assert [e async for e in store.read(types=("thread.created",), stream="thread/b")] == [
        streams["thread/b"][0]
    ]
    report = await verify(store, expected=root)
    assert report.ok, report.problems
    assert report.events == len(before) + 1

    followed: list[Event] = []
    async for batch in store.follow(after=3):
        followed += batch
        if followed[-1].seq >= len(before):
            break
    assert followed[: len(before) - 3] == before[3:]

    path = tmp_path / "export.jsonl"
    with path.open("wb") as file:
        assert await export_events(store, file) == len(before) + 1


async def test_the_record_stands_in_the_log(store: LogStore) -> None:
    await answer(store, "a")
    done = await archive_streamed(store, before=FUTURE)
    event = (await everything(store, "log"))[-1]
    assert event.type == "log.archived"
    assert store.objects is not None
    payload = msgspec.json.decode(event.data, type=c.LogArchived)
    stored = await store.objects.stat(payload.object)
    assert stored is not None
    assert (payload.object, payload.events, payload.bytes) == (
        done.segments[0],
        20,
        stored.size,
    )
    [part] = await store.segments()
    assert (part.segment.sha256, part.first, part.last) == (
        payload.sha256,
        payload.first,
        payload.last,
    )


async def test_only_what_is_old_and_over_is_archived(store: LogStore) -> None:
    await answer(store, "old", 5)
    await answer(store, "open", 5, ended=False)
    await put(
        store,
        "thread/x",
        new(c.MessageStarted(message="m"), run="r"),
        new(c.MessageDelta(message="m", text="1"), run="r"),
        new(c.StepStarted(step="s", name="n"), run="r"),
        new(c.StepDelta(step="s", text="1"), run="r"),
        new(c.StepCompleted(step="s", output="1"), run="r"),
    )
    done = await archive_streamed(store, before=FUTURE, dry_run=True)
    assert done.events == 6  # of "old", and the step
    assert (await archive_streamed(store, before=1)).events == 0
    assert (await archive_streamed(store, before=FUTURE, least=7)).events == 0
    assert await store.segments() == []
    done = await archive_streamed(store, before=FUTURE)
    assert done.events == 6
    await put(store, "thread/x", new(c.RunInterrupted(run="r", reason="crash"), run="r"))
    done = await archive_streamed(store, before=FUTURE, after=done.until)
    assert done.events == 1
    assert (await archive_streamed(store, before=FUTURE)).events == 0
    assert (await verify(store)).ok


async def test_a_clock_that_was_wrong_stops_no_archive(store: LogStore) -> None:
    """Events from the far future are as old as what was written before them."""
    now = time.time_ns()
    delta = new(c.StepDelta(step="s", text="1"), run="r")
    ended = [new(c.StepCompleted(step="s", output="1"), run="r")]
    for at in (now - 9 * 10**9, now + 10**18, now - 8 * 10**9, now - 10**9, now + 10**18):
        await put(store, "thread/x", msgspec.structs.replace(delta, time=at))
    await put(store, "thread/x", *ended)
    done = await archive_streamed(store, before=now - 5 * 10**9)
    assert (done.events, done.until) == (3, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAGE", 1)
        assert (await archive_streamed(store, before=now)).events == 2


async def test_writing_goes_on_after_an_archive(open_log: Open) -> None:
    async with open_log() as store:
        await answer(store, "a")
        await archive_threads(store, ["a"], before=FUTURE)
        assert await store.stream_version("thread/a") == 29
        await put(store, "thread/a", new(c.ThreadRenamed(title="more")))
        await answer(store, "b", 3)
        assert [e.version for e in await everything(store, "thread/a")] == list(range(1, 31))
        if isinstance(store, MemoryStore):
            return
        before = await everything(store)
    async with open_log() as store:
        assert await everything(store) == before
        assert await store.stream_version("thread/a") == 30
        await archive_threads(store, ["a", "b"], before=FUTURE)
        assert (await everything(store))[: len(before)] == before
        assert (await verify(store)).ok


async def test_whole_threads(store: LogStore) -> None:
    await answer(store, "a")
    await answer(store, "open", ended=False)
    before = await everything(store, "thread/a")
    now = time.time_ns()
    assert (await archive_threads(store, ["a"], before=before[-1].time)).events == 0
    done = await archive_threads(store, ["a", "open", "none"], before=now)
    assert done.events == len(before) - 1
    assert [row[0] for row in await store.hot(until=FUTURE, stream="thread/a")] == before[-1:]
    await forget(store)
    assert await everything(store, "thread/a") == before
    assert (await archive_threads(store, ["a"], before=FUTURE)).events == 0


# ------------------------------------------------------------------------------------- restoring


async def test_restoring_a_stream_leaves_the_others(store: LogStore) -> None:
    for thread in ("a", "b"):
        await answer(store, thread)
    before = await everything(store)
    done = await archive_streamed(store, before=FUTURE)
    back = await restore(store, stream="thread/a")
    assert (back.events, back.segments) == (20, 1)
    [part] = await store.segments()
    assert part.segment.events == 20
    objects = store.objects
    assert objects is not None
    assert await objects.stat(done.segments[0]) is None
    assert await store.uploads() == []
    await forget(store)
    assert (await everything(store))[: len(before)] == before
    assert (await restore(store, stream="thread/a")).events == 0
    assert (await restore(store, seqs=[before[-3].seq, before[-4].seq])).events == 2
    assert (await restore(store)).events == 18
    assert await store.segments() == []
    assert [stored async for stored in objects.list()] == []
    assert (await everything(store))[: len(before)] == before
    assert (await verify(store)).ok
    record = (await everything(store, "log"))[-1]
    assert record.type == "log.restored"


# ------------------------------------------------------------------------------------ what fails


class Failing(DirectoryObjects):
    """A directory that fails as told."""

    on_put = on_read = False
    damage = False

    async def put(self, key: str, chunks: object, *, sha256: str | None = None) -> object:  # type: ignore[override]
        if self.on_put:
            raise ObjectError("s3://x cannot be reached")
        return await super().put(key, chunks, sha256=sha256)  # type: ignore[arg-type]

    async def read(self, key: str, *, sha256: str | None = None) -> bytes:
        if self.on_read:
            raise ObjectError("s3://x cannot be reached")
        return await super().read(key, sha256=sha256)


@pytest.mark.parametrize("fault", ["on_put", "on_read"])
async def test_an_object_store_that_fails_changes_nothing(
    store: LogStore, tmp_path: Path, fault: str
) -> None:
    await answer(store, "a")
    objects = Failing(tmp_path / "failing")
    store.attach(objects)
    setattr(objects, fault, True)
    before = await everything(store)
    with pytest.raises(StoreError, match="cannot be reached"):
        await archive_streamed(store, before=FUTURE)
    assert await everything(store) == before
    assert await hot(store) == len(before)
    assert len(await store.uploads()) == 1
    setattr(objects, fault, False)
    assert (await archive_streamed(store, before=FUTURE)).events == 20
    assert await store.uploads() == []
    assert len([stored async for stored in objects.list()]) == 1


async def test_missing_and_damaged_segments(store: LogStore, tmp_path: Path) -> None:
    await answer(store, "a")
    done = await archive_streamed(store, before=FUTURE)
    await forget(store)
    path = tmp_path / "objects" / done.segments[0]
    data = path.read_bytes()
    [part] = await store.segments()

    path.unlink()
    with pytest.raises(ObjectMissing, match="is not in") as caught:
        await everything(store)
    assert "backup" in str(caught.value.hint)
    assert await store.fetch(stream="log", limit=5)  # what needs it not goes on
    report = await verify(store)
    assert report.found >= 20
    assert {p.seq for p in report.problems if p.kind == "unreadable"} == set(
        range(part.first, part.last + 1)
    )
    with pytest.raises(ObjectMissing):
        await restore(store)

    path.write_bytes(data[:100] + b"?" + data[101:])
    with pytest.raises(ObjectError, match="damaged"):
        await everything(store)
    path.write_bytes(data)
    assert (await verify(store)).ok


async def test_a_segment_that_goes_while_several_read(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another reader has learned meanwhile does not make the first one's look a fresh one."""
    await answer(store, "a")
    before = await store.rows(after=0, limit=20)
    await archive_streamed(store, before=FUTURE)
    assert store.objects is not None
    read, calls = store.objects.read, 0

    async def late(*args: Any, **options: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 1:
            await restore(store)
            await forget(store)
            await everything(store)
            await archive_streamed(store, before=FUTURE)
            await store.rows(after=0, limit=20)
        return await read(*args, **options)

    monkeypatch.setattr(store.objects, "read", late)
    assert await store.rows(after=0, limit=20) == before
    assert calls > 1


CATALOG = {
    "a stream is left out": "DELETE FROM segment_stream WHERE stream_id = 1",
    "a stream is cut": "UPDATE segment_stream SET last = last - 3",
    "a stream is another": "UPDATE segment_stream SET stream_id = stream_id + 70",
    "a type is left out": "UPDATE segment SET types = '[\"run.started\"]'",
    "a range is cut": "UPDATE segment SET first = first + 1",
    "a segment is another": "UPDATE segment SET id = id + 1",
    "a count is wrong": "UPDATE segment SET events = events - 1",
}


@pytest.mark.parametrize("statement", CATALOG.values(), ids=CATALOG.keys())
async def test_a_damaged_catalog_is_noticed(tmp_path: Path, statement: str) -> None:
    """It says where archived events are: by it they could disappear from conversations."""
    objects = DirectoryObjects(tmp_path / "objects")
    async with open_store(f"{tmp_path}/log.db", synchronous="normal", objects=objects) as store:
        await answer(store, "a", 6)
        await archive_streamed(store, before=FUTURE)
        assert (await verify(store)).ok
        before = await everything(store, "thread/a")
    with closing(sqlite3.connect(tmp_path / "log.db")) as conn:
        conn.execute(statement)
        conn.commit()
    async with open_store(f"{tmp_path}/log.db", read_only=True, objects=objects) as store:
        report = await verify(store)
        assert not report.ok
        assert "catalog of archived events" in report.problems[-1].message
        try:
            assert await everything(store, "thread/a") == before
        except StoreError as error:
            assert "of thread/a is missing" in error.message


async def test_a_missing_event_is_not_passed_over(tmp_path: Path) -> None:
    async with open_store(f"{tmp_path}/log.db", synchronous="normal") as store:
        await answer(store, "a", 6)
    with closing(sqlite3.connect(tmp_path / "log.db")) as conn:
        conn.execute("DELETE FROM event WHERE seq = 5")
        conn.commit()
    async with open_store(f"{tmp_path}/log.db", read_only=True) as store:
        with pytest.raises(StoreError, match="event 5 is missing"):
            await everything(store)
        with pytest.raises(StoreError, match="version 5 of thread/a is missing"):
            await store.fetch(stream="thread/a", after=2, limit=4)
        assert len(await store.fetch(stream="thread/a", after=2, limit=2)) == 2
        assert len(await store.fetch(stream="thread/a", after=5, limit=2)) == 2


async def test_without_objects_the_reader_says_what_to_set(open_log: Open) -> None:
    async with open_log() as store:
        await answer(store, "a")
        await archive_streamed(store, before=FUTURE)
        await forget(store)
        store._through.objects = None
        with pytest.raises(StoreError, match="are archived") as caught:
            await everything(store)
        assert caught.value.hint == "set objects.url"
        with pytest.raises(StoreError, match="no object store"):
            await archive_streamed(store, before=FUTURE)


async def test_a_row_that_changes_meanwhile_stays(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when somebody redacts between reading and moving: the old payload must not come back."""
    await answer(store, "a")
    encode = module.segments.encode

    def other(rows: list[tuple[Event, bytes, bytes]], incarnation: str) -> bytes:
        rows[3] = (rows[3][0], os.urandom(32), rows[3][2])
        return encode(rows, incarnation)

    monkeypatch.setattr(module.segments, "encode", other)
    before = await everything(store)
    with pytest.raises(StoreError, match="no longer what it was; nothing was moved"):
        await archive_streamed(store, before=FUTURE)
    assert await hot(store) == len(before)
    assert await store.segments() == []
    monkeypatch.undo()
    await put(store, "thread/z", new(c.ThreadRenamed(title="the writer lives on")))
    assert (await archive_streamed(store, before=FUTURE)).events == 20


async def test_an_object_that_somebody_swept_is_not_used(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the right to archive was lost with its connection, and another node took over."""
    await answer(store, "a")
    before = await everything(store)
    move = store.move

    async def late(op: Move) -> Appended:
        await sweep(store)
        return await move(op)

    assert store.objects is not None
    upload = store.objects.put

    async def stored_late(*args: Any, **options: Any) -> Stored:
        await sweep(store)
        return await upload(*args, **options)

    for place, name, slow in ((store, "move", late), (store.objects, "put", stored_late)):
        monkeypatch.setattr(place, name, slow)
        with pytest.raises(StoreError, match="was deleted meanwhile; nothing was moved"):
            await archive_streamed(store, before=FUTURE)
        assert await hot(store) == len(before)
        assert await store.uploads() == []
        assert [stored async for stored in store.objects.list()] == []
        monkeypatch.undo()
    assert (await archive_streamed(store, before=FUTURE)).events == 20


async def test_an_object_in_use_is_not_swept(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a sweeper looked before another node's move was committed."""
    await answer(store, "a")
    before = await everything(store)
    done = await archive_streamed(store, before=FUTURE)

    async def uploads() -> list[str]:
        return done.segments

    monkeypatch.setattr(store, "uploads", uploads)
    assert await sweep(store) == []
    monkeypatch.undo()
    assert await store.uploads() == []
    await forget(store)
    assert (await everything(store))[: len(before)] == before


async def test_one_at_a_time(open_log: Open) -> None:
    async with open_log() as store:
        await answer(store, "a")
        async with store.archiving():
            with pytest.raises(StoreError, match="at work already"):
                await archive_streamed(store, before=FUTURE)
            if type(store).__name__ == "PostgresStore":
                async with open_log() as other:
                    with pytest.raises(StoreError, match="another process"):
                        await restore(other)
        assert (await archive_streamed(store, before=FUTURE)).events == 20


async def test_another_node_sees_moves(open_log: Open, tmp_path: Path) -> None:
    """A reader in another process, whose cache of segments and generation is its own."""
    async with open_log() as store:
        if isinstance(store, MemoryStore):
            return
        url = (
            store._dsn if type(store).__name__ == "PostgresStore" else f"{tmp_path}/log.db"  # type: ignore[attr-defined]
        )
        async with open_store(url, read_only=True, objects=store.objects) as other:
            await answer(store, "a")
            before = await everything(store)
            count = len(before)
            for _ in range(3):
                await archive_streamed(store, before=FUTURE)
                assert (await everything(other))[:count] == before
                types = ("tokens.generated",)
                assert len([e async for e in other.read(types=types)]) == 20
                await restore(store)
                assert (await everything(other))[:count] == before
                assert len([e async for e in other.read(types=types)]) == 20


async def test_readers_while_rows_move(store: LogStore) -> None:
    """Nobody misses an event or sees one twice while the archive takes them away and back."""
    for thread in ("a", "b"):
        await answer(store, thread, 30)
    before = await everything(store)
    wanted = [e for e in before if e.type in STREAMED]
    await forget(store)
    over = asyncio.Event()
    rounds = 0

    async def look() -> None:
        nonlocal rounds
        while not over.is_set():
            assert (await everything(store))[: len(before)] == before
            assert [e async for e in store.read(types=STREAMED)] == wanted
            rounds += 1
            await asyncio.sleep(0)  # in memory nothing else gives way

    lookers = [asyncio.ensure_future(look()) for _ in range(3)]
    for _ in range(6):
        await archive_streamed(store, before=FUTURE)
        await restore(store, stream="thread/a")
        await restore(store)
    over.set()
    await asyncio.gather(*lookers)
    assert rounds > 0


# -------------------------------------------------------------------------------------- property


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_moves_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    asyncio.run(_moves(tmp_path_factory.mktemp("moves"), data))


async def _moves(folder: Path, data: st.DataObject) -> None:
    objects = DirectoryObjects(folder / "objects")
    url = data.draw(st.sampled_from(["memory:", str(folder / "log.db")]))
    streams = ["thread/a", "thread/b", "thread/c"]
    model: list[tuple[str, str, bytes]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EVENTS", data.draw(st.sampled_from([1, 3, 10, 1000])))
        async with open_store(url, synchronous="normal", objects=objects) as store:
            for _ in range(data.draw(st.integers(1, 12))):
                what = data.draw(st.sampled_from(["put", "put", "streamed", "threads", "restore"]))
                stream = data.draw(st.sampled_from(streams))
                if what == "put":
                    count = data.draw(st.integers(1, 8))
                    delta = new(c.MessageDelta(message="m", text=str(len(model))))
                    end = new(c.MessageCompleted(message="m"))
                    await put(store, stream, *[delta] * count, end)
                    model += [(stream, e.type, e.data) for e in (*[delta] * count, end)]
                    continue
                if what == "streamed":
                    await archive_streamed(store, before=FUTURE)
                elif what == "threads":
                    await archive_threads(store, [stream[7:]], before=FUTURE)
                else:
                    seqs = data.draw(st.none() | st.sets(st.integers(1, 60), max_size=5))
                    await restore(store, stream=data.draw(st.none() | st.just(stream)), seqs=seqs)
                await forget(store)
                await _compare(store, model, data)
            assert (await verify(store)).ok
            kept = {part.segment.object for part in await store.segments()}
            assert {stored.key async for stored in objects.list()} == kept


async def _compare(
    store: LogStore, model: list[tuple[str, str, bytes]], data: st.DataObject
) -> None:
    def plain(events: list[Event]) -> list[tuple[str, str, bytes]]:
        return [(e.stream, e.type, e.data) for e in events if e.stream != "log"]

    found = await everything(store)
    assert [e.seq for e in found] == list(range(1, len(found) + 1))
    assert plain(found) == model
    stream = data.draw(st.sampled_from(["thread/a", "thread/b"]))
    of_stream = await everything(store, stream)
    assert [e.version for e in of_stream] == list(range(1, len(of_stream) + 1))
    assert plain(of_stream) == [row for row in model if row[0] == stream]
    after = data.draw(st.integers(0, len(found)))
    limit = data.draw(st.integers(1, 10))
    types = data.draw(st.none() | st.just(("message.delta",)))
    wanted = [e for e in found if e.seq > after and (types is None or e.type in types)]
    assert await store.fetch(after=after, limit=limit, types=types) == wanted[:limit]


# ------------------------------------------------------------------------------------------ crash

CHILD = """
import asyncio, os, sys, signal
from pathlib import Path
from app.events import archive
from app.events.logstore import LogStore
from app.events.objects import DirectoryObjects
from app.events.open import open_store

async def main():
    objects = DirectoryObjects(Path(sys.argv[2]))
    async def die(*args):
        os.kill(os.getpid(), signal.SIGKILL)

    sweep, calls = archive.sweep, []

    async def die_later(store):
        calls.append(store)
        return await (die() if len(calls) == 2 else sweep(store))

    if sys.argv[3] == "before":
        LogStore.move = die
    else:
        archive.sweep = die_later
    async with open_store(sys.argv[1], objects=objects) as store:
        if sys.argv[3] == "after":
            await archive.restore(store)
        await archive.archive_streamed(store, before=2**62)

asyncio.run(main())
"""


def die(folder: Path, when: str) -> None:
    command = [sys.executable, "-c", CHILD, str(folder / "log.db"), str(folder / "objects"), when]
    child = subprocess.run(command, cwd=ROOT, check=False)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.crash
async def test_killed_between_upload_and_commit(tmp_path: Path) -> None:
    objects = DirectoryObjects(tmp_path / "objects")
    async with open_store(f"{tmp_path}/log.db", objects=objects) as store:
        await answer(store, "a")
        before = await everything(store)
    await asyncio.to_thread(die, tmp_path, "before")
    orphans = [stored.key async for stored in objects.list()]
    assert len(orphans) == 1
    async with open_store(f"{tmp_path}/log.db", objects=objects) as store:
        assert await everything(store) == before
        assert await store.uploads() == orphans
        assert (await archive_streamed(store, before=FUTURE)).events == 20
        kept = [stored.key async for stored in objects.list()]
        assert len(kept) == 1
        assert kept != orphans
        await forget(store)
        assert (await everything(store))[: len(before)] == before


@pytest.mark.crash
async def test_killed_after_a_restore_before_the_object_is_deleted(tmp_path: Path) -> None:
    objects = DirectoryObjects(tmp_path / "objects")
    async with open_store(f"{tmp_path}/log.db", objects=objects) as store:
        await answer(store, "a")
        before = await everything(store)
        await archive_streamed(store, before=FUTURE)
    await asyncio.to_thread(die, tmp_path, "after")
    async with open_store(f"{tmp_path}/log.db", objects=objects) as store:
        assert await store.segments() == []
        assert len([stored async for stored in objects.list()]) == 1
        assert len(await sweep(store)) == 1
        assert [stored async for stored in objects.list()] == []
        assert (await everything(store))[: len(before)] == before


async def test_a_backup_does_not_delete_the_objects_of_its_original(tmp_path: Path) -> None:
    objects = DirectoryObjects(tmp_path / "objects")
    async with open_store(f"{tmp_path}/log.db", objects=objects) as store:
        await answer(store, "a")
        await archive_streamed(store, before=FUTURE)
    with (
        closing(sqlite3.connect(tmp_path / "log.db")) as source,
        closing(sqlite3.connect(tmp_path / "copy.db")) as copy,
    ):
        source.backup(copy)
        copy.execute("UPDATE log SET incarnation = 'another life'")
        copy.commit()
    async with open_store(f"{tmp_path}/copy.db", objects=objects) as copied:
        assert (await restore(copied)).events == 20
        assert (await verify(copied)).ok
    async with open_store(f"{tmp_path}/log.db", objects=objects) as store:
        assert (await verify(store)).ok
        assert (await restore(store)).events == 20


def test_nothing_done_says_so() -> None:
    assert Archived() == Archived(0, 0, 0, [], 0)

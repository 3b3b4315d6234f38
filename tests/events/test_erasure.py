"""Redaction: payloads are gone from every file, all else holds, and the log still verifies."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import EverlogError, InputError
from app.events import catalogue as c
from app.events.archive import archive_threads
from app.events.codec import decode, new
from app.events.envelope import Event, NewEvent
from app.events.erasure import plan_seqs, plan_threads, plan_user, redact
from app.events.leaf import DIGEST
from app.events.logstore import LogStore
from app.events.memory import MemoryStore
from app.events.objects import DirectoryObjects, ObjectError
from app.events.open import open_store
from app.events.ops import Erasure
from app.events.redaction import remainder
from app.events.seal import head, seal_now
from app.events.segment import decode as decode_segment
from app.events.store import Append, Conflict
from app.events.transfer import export_events, import_events
from app.events.verify import Report, verify
from tests.contract.support import enqueue, life, must
from tests.support.postgres import new_database

SECRET = "Zanzibar"
LONG = f"{SECRET}, " * 4000  # overflows a page
Tamper = Callable[..., Awaitable[Report]]
REASON = "asked for on 1 May"


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LogStore]:
    url = "memory:" if request.param == "memory" else f"{tmp_path}/log.db"
    if request.param == "postgres":
        url = await new_database(request.getfixturevalue("postgres"))
    async with open_store(url, synchronous="normal") as store:
        yield store


def posted(id: str, content: str, user: str = "ann") -> NewEvent:
    payload = c.MessagePosted(message=id, role="user", content=content, author=content[:8])
    return new(payload, actor=f"user:{user}")


async def talk(store: LogStore, thread: str, owner: str, content: str) -> None:
    """A conversation with an answer, and a seal in the middle of it."""
    stream = f"thread/{thread}"
    created = new(c.ThreadCreated(owner=owner, title=content[:8]), actor=f"user:{owner}")
    await must(store, Append(stream=stream, events=[created, posted("1", content, owner)]))
    run = f"run-{thread}"
    await must(store, Append(stream=stream, events=[started(run)]))
    await seal_now(store)
    parts = [new(c.MessageDelta(message="2", text=content[:20]), run=run) for _ in range(3)]
    await must(store, Append(stream=stream, events=[*parts, posted("3", content, owner)]))
    await must(store, Append(stream=stream, events=[new(c.RunCompleted(run=run), run=run)]))


def started(run: str) -> NewEvent:
    return new(c.RunStarted(run=run, hook="on_message", node="n"), run=run)


async def whole(store: LogStore, stream: str | None = None) -> list[Event]:
    return [event async for event in store.read(stream=stream)]


def shape(event: Event) -> Event:
    return msgspec.structs.replace(event, data=b"")


async def erase(store: LogStore, *threads: str) -> int:
    plan = await plan_threads(store, threads)
    return (await redact(store, plan, reason=REASON)).events


# ------------------------------------------------------------------------------- what it does


async def test_a_conversation_is_erased_and_the_log_still_verifies(store: LogStore) -> None:
    await talk(store, "a", "ann", SECRET)
    await talk(store, "b", "bob", "Bermuda")
    before, saved = await whole(store), await head(store)
    assert await erase(store, "a") == 6
    after = await whole(store)
    assert [shape(e) for e in after[: len(before)]] == [shape(e) for e in before]
    assert SECRET.encode() not in b"".join(e.data for e in after)
    assert await whole(store, "thread/b") == [e for e in before if e.stream == "thread/b"]
    [record] = after[len(before) :]
    payload = decode(record)
    assert isinstance(payload, c.LogRedacted) and payload.reason == REASON
    assert payload.seqs == [1, 2, 5, 6, 7, 8] and record.stream == "log"
    for report in (await verify(store, expected=saved), await verify(store)):
        assert report.ok and report.redacted == 6, report.problems
    await seal_now(store)
    assert (await verify(store, expected=saved)).ok


async def test_what_is_read_from_memory_is_erased_too(store: LogStore) -> None:
    await talk(store, "a", "ann", SECRET)
    following = store.follow(stream="thread/a")
    first = await anext(following)
    assert SECRET.encode() in first[1].data
    await erase(store, "a")
    assert (await store.fetch(stream="thread/a", limit=2))[1].data == remainder(first[1])
    await must(store, Append(stream="thread/a", events=[posted("9", "still here")]))
    assert [e.version for e in await anext(following)] == [9]


async def test_again_does_nothing(store: LogStore) -> None:
    await talk(store, "a", "ann", SECRET)
    await erase(store, "a")
    now = await whole(store)
    assert await erase(store, "a") == 0
    assert await whole(store) == now


async def test_some_events(store: LogStore) -> None:
    await talk(store, "a", "ann", SECRET)
    plan = await plan_seqs(store, [2, 4, 2, 3])  # 3: a run, 4: a seal; no content in them
    assert (plan.seqs, plan.threads) == ([2], ["a"])
    assert (await redact(store, plan, reason=REASON)).records == [10]
    assert SECRET.encode() in b"".join(e.data for e in await whole(store))
    for seq in (0, 11):
        with pytest.raises(InputError, match=f"no event {seq}"):
            await plan_seqs(store, [seq])


async def test_a_user(store: LogStore) -> None:
    await talk(store, "a", "ann", SECRET)
    await talk(store, "b", "bob", "Bermuda")
    await talk(store, "c", "ann", SECRET)
    comment = c.MessageFeedback(message="3", value=1, comment=SECRET)
    feedback = new(comment, actor="user:ann")
    await must(store, Append(stream="thread/b", events=[feedback]))
    named = new(c.UserCreated(user="ann", name=SECRET))
    await must(store, Append(stream="user/ann", events=[named]))
    alone = c.RequestQueued(request="r", params=c.SamplingParams(), text=SECRET)
    queued = new(alone, actor="user:ann", request="r")
    await must(store, Append(stream="request/r", events=[queued]))
    cancelled = new(c.RequestCancelled(request="r", text=SECRET), request="r")
    await must(store, Append(stream="request/r", events=[cancelled]))
    plan = await plan_user(store, "ann")
    assert sorted(plan.threads) == ["a", "b", "c"]
    done = await redact(store, plan, reason=REASON)
    assert done.events == 6 + 6 + 1 + 1 + 2
    texts = b"".join(e.data for e in await whole(store))
    assert SECRET.encode() not in texts and texts.count(b'"content":"Bermuda"') == 2
    assert (await verify(store)).redacted == 16
    with pytest.raises(EverlogError, match="nothing of a user 'zoe'"):
        await plan_user(store, "zoe")


async def test_what_a_users_keys_wrote_is_the_users(store: LogStore) -> None:
    hers = c.KeyCreated(key="1", name="bot", hash="x", scopes=["api"], user="ann")
    his = c.KeyCreated(key="2", name="rob", hash="y", scopes=["api"], user="bob")
    await must(store, Append(stream="keys", events=[new(hers), new(his)]))
    for name, text in (("bot", SECRET), ("rob", "Bermuda")):
        queued = c.RequestQueued(request=name, params=c.SamplingParams(seed=1), text=text)
        event = new(queued, actor=f"key:{name}", request=name)
        await must(store, Append(stream=f"request/{name}", events=[event]))
        cancelled = new(c.RequestCancelled(request=name, text=text), request=name)
        await must(store, Append(stream=f"request/{name}", events=[cancelled]))
    assert (await redact(store, await plan_user(store, "ann"), reason=REASON)).events == 2
    texts = b"".join(event.data for event in await whole(store))
    assert SECRET.encode() not in texts and texts.count(b"Bermuda") == 2


async def test_in_pieces(store: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.events.erasure.CHUNK", 4)
    monkeypatch.setattr("app.events.erasure.GAP", 1)
    for _ in range(3):
        await talk(store, "a", "ann", SECRET)
        await talk(store, "b", "bob", "Bermuda")
    calls: list[tuple[int, int]] = []
    plan = await plan_threads(store, ["a"])
    done = await redact(store, plan, reason=REASON, progress=lambda *args: calls.append(args))
    assert calls == [(4, 18), (8, 18), (12, 18), (16, 18), (18, 18)]
    assert (done.events, len(done.records)) == (18, 5)
    report = await verify(store)
    assert report.ok and report.redacted == 18


async def test_cut_short_and_run_again(store: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.events.erasure.CHUNK", 4)
    await talk(store, "a", "ann", SECRET)

    def cut(done: int, total: int) -> None:
        raise RuntimeError(f"at {done} of {total}")

    with pytest.raises(RuntimeError, match="at 4 of 6"):
        await redact(store, await plan_threads(store, ["a"]), reason=REASON, progress=cut)
    assert (await verify(store)).redacted == 4
    assert await erase(store, "a") == 2
    report = await verify(store)
    assert report.ok and report.redacted == 6


# ------------------------------------------------------------------------------- refusals


async def test_a_conversation_at_work_is_refused(store: LogStore) -> None:
    await talk(store, "a", "ann", SECRET)
    await must(store, Append(stream="thread/a", events=[started("n")]))
    with pytest.raises(EverlogError, match="conversation a is at work") as raised:
        await plan_threads(store, ["a"])
    assert "stop it" in str(raised.value.hint)
    await must(store, Append(stream="thread/a", events=[new(c.RunStopped(run="n"))]))
    await enqueue(store, "r", "thread/a")
    for plan in (plan_seqs(store, [2]), plan_user(store, "ann")):
        with pytest.raises(EverlogError, match="conversation a is at work"):
            await plan
    await must(store, Append(stream="thread/a", events=[life("request.cancelled", "r")]))
    assert await erase(store, "a") > 6


async def test_a_conversation_that_went_on_is_left_alone(store: LogStore) -> None:
    await talk(store, "a", "ann", SECRET)
    plan = await plan_threads(store, ["a"])
    await must(store, Append(stream="thread/a", events=[started("n")]))
    now = await whole(store)
    with pytest.raises(EverlogError, match="went on meanwhile"):
        await redact(store, plan, reason=REASON)
    assert await whole(store) == now


async def test_more_is_erased_while_the_log_is_verified(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page read before is no evidence against a record read after it."""
    await talk(store, "a", "ann", SECRET)
    await redact(store, await plan_seqs(store, [8]), reason=REASON)
    rows, erased = store.rows, []

    async def slow(*, after: int, limit: int) -> object:
        found = await rows(after=after, limit=limit)
        if not erased:
            monkeypatch.undo()
            erased.append(await redact(store, await plan_seqs(store, [2]), reason=REASON))
        return found

    monkeypatch.setattr(store, "rows", slow)
    report = await verify(store)
    assert report.ok and erased, report.problems


async def test_an_event_that_is_elsewhere(store: LogStore) -> None:
    """Nothing is written, and neighbours in the batch are."""
    await talk(store, "a", "ann", SECRET)
    version = await store.stream_version("thread/a")
    gone = [Erasure(seq=2, stream="thread/a", version=7, left=b"{}", opening=b"x" * 32)]
    redacting = store.redact(gone, expected={"thread/a": version}, reason=REASON)
    other = store.append(Append(stream="thread/b", events=[posted("1", "x")]))
    refused, fine = await asyncio.gather(redacting, other, return_exceptions=True)
    assert isinstance(refused, ValueError)
    assert [e.stream for e in await whole(store)][-1] == "thread/b", fine
    moved = await store.redact(gone, expected={"thread/a": version - 1}, reason=REASON)
    assert moved == Conflict(version)
    assert (await verify(store)).ok


# ------------------------------------------------------------------------------ the files


def found_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if SECRET.encode() in p.read_bytes())


async def test_the_bytes_are_gone_from_the_files(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with open_store(str(path), synchronous="normal") as store:
        for i in range(40):
            await talk(store, "a", "ann", f"{SECRET} {i}")
            await talk(store, "b", "bob", "Bermuda")
            if i % 10 == 0:
                await must(store, Append(stream="thread/a", events=[posted("l", LONG)]))
                await store.scrub()  # some pages are in the database, some in the WAL
    async with open_store(str(path), synchronous="normal") as store:
        await must(store, Append(stream="thread/a", events=[posted("x", LONG)]))
        assert found_in(tmp_path) == ["log.db", "log.db-wal"]
        await erase(store, "a")
        assert await store.scrub()
        assert found_in(tmp_path) == []
        assert (await verify(store)).ok
    assert found_in(tmp_path) == []


async def test_a_reader_in_the_way_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.events.sqlite.SCRUB_SECONDS", 0.05)
    async with open_store(f"{tmp_path}/log.db", synchronous="normal") as store:
        await talk(store, "a", "ann", SECRET)
        with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM event").fetchone()
            await erase(store, "a")
            assert not await store.scrub()
        assert await store.scrub()
        assert found_in(tmp_path) == []


async def test_a_redacted_log_moves_house(store: LogStore, tmp_path: Path) -> None:
    await talk(store, "a", "ann", SECRET)
    await erase(store, "a")
    with (tmp_path / "log.jsonl").open("wb") as file:
        await export_events(store, file)
    async with MemoryStore() as target:
        await import_events(target, tmp_path / "log.jsonl")
        report = await verify(target, expected=None)
        assert report.ok and report.redacted == 6, report.problems
        assert (await head(target)).root == (await head(store)).root


# ----------------------------------------------------------------------------- the archive


def archived_in(folder: Path) -> bytes:
    """All that the objects in a folder say."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    rows = [row for path in files for row in decode_segment(path.read_bytes())]
    return b"".join(event.data for event, _, _ in rows)


async def test_objects_that_could_not_be_deleted_at_first(
    store: LogStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash, or while S3 was away: the next run deletes what the first left over."""
    store.attach(DirectoryObjects(tmp_path / "objects"))
    await talk(store, "a", "ann", SECRET)
    await archive_threads(store, ["a"], before=2**62)

    async def away(objects: DirectoryObjects, key: str) -> None:
        raise ObjectError("it is away")

    for times in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(DirectoryObjects, "delete", away)
            with pytest.raises(ObjectError, match="it is away"):
                await erase(store, "a")
        assert SECRET.encode() in archived_in(tmp_path / "objects"), times
    await erase(store, "a")
    assert SECRET.encode() not in archived_in(tmp_path / "objects")


async def test_archived_events_are_erased_too(store: LogStore, tmp_path: Path) -> None:
    store.attach(DirectoryObjects(tmp_path / "objects"))
    await talk(store, "a", "ann", SECRET)
    await talk(store, "b", "bob", "Bermuda")
    saved = await head(store)
    assert (await archive_threads(store, ["a", "b"], before=2**62)).events > 10
    assert SECRET.encode() in archived_in(tmp_path / "objects")
    assert await erase(store, "a") == 6
    left = archived_in(tmp_path / "objects")
    assert SECRET.encode() not in left and b"Bermuda" in left
    assert SECRET.encode() not in b"".join(e.data for e in await whole(store))
    report = await verify(store, expected=saved)
    assert report.ok and report.redacted == 6, report.problems
    await archive_threads(store, ["a"], before=2**62)
    assert SECRET.encode() not in archived_in(tmp_path / "objects")
    report = await verify(store, expected=saved)
    assert report.ok and report.redacted == 6, report.problems
    assert await erase(store, "a") == 0


# --------------------------------------------------------------------------- tampering with it


@pytest.fixture
async def tamper(tmp_path: Path) -> Tamper:
    """Change a redacted log by SQL, verify it. Seq 2 is redacted; 5 is not."""
    path = tmp_path / "log.db"
    async with open_store(str(path), synchronous="normal") as store:
        await talk(store, "a", "ann", SECRET)
        await redact(store, await plan_seqs(store, [2, 8]), reason=REASON)

    async def tamper(statement: str, *args: object) -> Report:
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            conn.execute(statement, args)
        async with open_store(str(path), read_only=True) as store:
            return await verify(store)

    return tamper


def kinds(report: Report) -> list[tuple[int | None, str]]:
    return [(problem.seq, problem.kind) for problem in report.problems]


async def test_what_is_left_cannot_be_changed(tamper: Tamper) -> None:
    report = await tamper("UPDATE event SET data = x'7b7d' WHERE seq = 2")
    assert kinds(report) == [(2, "redaction")]
    assert "changed after it was redacted" in report.problems[0].message


async def test_nothing_can_be_erased_without_a_record(tamper: Tamper, tmp_path: Path) -> None:
    """The leaf alone does not show it: whoever can write the file can compute it."""
    from app.events.leaf import inner

    with closing(sqlite3.connect(tmp_path / "log.db")) as conn:
        row = conn.execute("SELECT salt, data FROM event WHERE seq = 5").fetchone()
    report = await tamper("UPDATE event SET data = x'7b7d', salt = ? WHERE seq = 5", inner(*row))
    assert kinds(report) == [(5, "redaction")]
    assert "without a record" in report.problems[0].message


async def test_a_payload_that_came_back_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with open_store(str(path), synchronous="normal") as store:
        await talk(store, "a", "ann", SECRET)
        old = path.with_name("old.db")
        await store.scrub()
        old.write_bytes(path.read_bytes())
        await erase(store, "a")
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("ATTACH ? AS old", (str(old),))
        conn.execute("REPLACE INTO main.event SELECT * FROM old.event WHERE seq = 6")
    async with open_store(str(path), read_only=True) as store:
        report = await verify(store)
    assert kinds(report) == [(6, "redaction")]
    assert "yet its payload is there" in report.problems[0].message


async def test_an_unreadable_record_is_named(tmp_path: Path) -> None:
    async with MemoryStore() as store:
        bad = NewEvent(type="log.redacted", data=b'{"seqs":[1],"left":[],"reason":""}')
        await must(store, Append(stream="log", events=[bad]))
        assert kinds(await verify(store)) == [(1, "redaction")]


# ------------------------------------------------------------------------------ any history

step = st.one_of(
    st.tuples(st.just("append"), st.sampled_from("abc"), st.integers(1, 4)),
    st.tuples(st.just("thread"), st.sampled_from("abc"), st.just(0)),
    st.tuples(st.just("seq"), st.just(""), st.integers(1, 30)),
    st.tuples(st.just("seal"), st.just(""), st.just(0)),
)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(step, max_size=25))
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_any_history(kind: str, steps: list[tuple[str, str, int]]) -> None:
    """Redacted events hold what is left, all others what they held; every old head still holds."""
    with tempfile.TemporaryDirectory() as folder:
        url = "memory:" if kind == "memory" else f"{folder}/log.db"
        async with open_store(url, synchronous="normal") as store:
            await live_through(store, steps)


async def live_through(store: LogStore, steps: list[tuple[str, str, int]]) -> None:
    model: list[bytes] = []
    heads = []
    for what, thread, count in steps:
        heads.append(await head(store))
        if what == "append":
            events = [posted(str(i), f"{SECRET} {len(model)}") for i in range(count)]
            await must(store, Append(stream=f"thread/{thread}", events=events))
        elif what == "seal":
            await seal_now(store)
        elif what == "thread" or count <= heads[-1].seq:
            whole_thread = what == "thread"
            plan = await (
                plan_threads(store, [thread]) if whole_thread else plan_seqs(store, [count])
            )
            await redact(store, plan, reason=REASON)
            for seq in plan.seqs:
                model[seq - 1] = b"left"
        now = await whole(store)
        model += [event.data for event in now[len(model) :]]
        for event, data in zip(now, model, strict=True):
            assert (SECRET.encode() in event.data) == (SECRET.encode() in data)
    for saved in heads[::5]:
        report = await verify(store, expected=saved)
        assert report.ok, report.problems
        assert report.redacted == model.count(b"left")
    rows = await store.rows(after=0, limit=1000)
    openings = [len(row[1]) for row in rows if isinstance(row, tuple)]
    assert openings.count(DIGEST) == model.count(b"left")

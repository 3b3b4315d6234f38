"""Copies: the same log in another store, whatever interrupts them."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import InputError
from app.events import copy as copying
from app.events.archive import archive_threads
from app.events.copy import copy
from app.events.envelope import Event
from app.events.erasure import plan_seqs, redact
from app.events.logstore import LogStore
from app.events.memory import MemoryStore
from app.events.objects import DirectoryObjects
from app.events.open import open_store
from app.events.seal import head, seal_now
from app.events.store import Duplicate, StoreError
from app.events.verify import verify
from tests.contract.support import must, notes
from tests.events.copying import fill, same
from tests.support.postgres import cluster, new_database

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "PAGE", 16)


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[LogStore]:
    async with open_store(str(tmp_path / "source.db"), synchronous="normal") as store:
        await fill(store, seed=1, steps=120)
        yield store


async def test_to_postgres_and_back(source: LogStore, tmp_path: Path, postgres_url: str) -> None:
    async with open_store(postgres_url) as middle, opened("sqlite", tmp_path) as target:
        first = (await must(source, notes("thread/quiet", "secret"))).first_seq
        await copy(source, middle)
        await same(source, middle)
        await fill(source, seed=5, steps=60)
        await copy(source, middle)  # and on
        await same(source, middle)
        await copy(middle, target)
        await same(middle, target)
        await same(source, target)
        await erase(source, [first])
        await copy(source, middle)
        await copy(middle, target)
        await same(source, target)
        for store in (middle, target):  # both go on
            await store.append(notes("thread/0", "later"))
            await seal_now(store)
            assert (await verify(store)).ok


async def test_another_log_in_postgres_is_refused(source: LogStore, postgres_url: str) -> None:
    async with open_store(postgres_url) as target:
        await target.append(notes("thread/0", "mine"))
        with pytest.raises(InputError, match="another log"):
            await copy(source, target)
        life = target.incarnation
        with pytest.raises(StoreError, match="has events"):
            await target.adopt(source.incarnation)
        assert life == target.incarnation != await target.adopt()
    async with open_store(postgres_url, read_only=True) as target:
        assert target.incarnation != life


async def test_postgres_dies_in_the_middle(source: LogStore) -> None:
    """It waits until the server is back, and goes on."""
    deaths = 0
    loop = asyncio.get_running_loop()
    with cluster(fsync="off") as server:

        async def die() -> None:
            nonlocal deaths
            deaths += 1
            if deaths % 4 == 1:
                await loop.run_in_executor(None, server.stop, "immediate")
                await loop.run_in_executor(None, server.start)

        async with open_store(await new_database(server)) as target:
            interrupt(target, 1, die)
            await copy(source, target)
            assert deaths > 8
            await same(source, target)


async def test_an_answer_that_was_lost(source: LogStore, postgres_url: str) -> None:
    """The page is there, only nobody heard so: it is neither written twice nor refused."""
    async with open_store(postgres_url) as target:
        real, count = target.load, 0

        async def load(events: Sequence[Event], salts: Sequence[bytes], **more: Any) -> int:
            nonlocal count
            count += 1
            done = await real(events, salts, **more)
            if count == 2:
                raise StoreError("Postgres does not answer")
            return done

        target.load = load  # type: ignore[method-assign]
        await copy(source, target)
        await same(source, target)


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[LogStore]:
    url = "memory:" if kind == "memory" else str(folder / "target.db")
    async with open_store(url, synchronous="normal") as store:
        yield store


async def test_a_command_sent_again_changes_nothing(tmp_path: Path) -> None:
    async with MemoryStore() as source, opened("sqlite", tmp_path) as target:
        for number in range(5):
            await source.append(notes("thread/a", "once", command=f"c{number}"))
            await copy(source, target)
        await same(source, target)
        again = await target.append(notes("thread/a", "once", command="c3"))
        assert again == Duplicate(4, 4)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_the_same_log_in_another_place(source: LogStore, tmp_path: Path, kind: str) -> None:
    calls: list[tuple[int, int]] = []
    checks: list[tuple[int, int]] = []
    async with opened(kind, tmp_path) as target:
        done = await copy(
            source,
            target,
            lambda *args: calls.append(args),
            checking=lambda *args: checks.append(args),
        )
        end = await source.head()
        assert (done.events, done.kept) == (end, 0)
        assert done.head == await head(source)
        assert calls[-1] == checks[-1] == (end, end)
        assert len(calls) > 3 and calls == sorted(calls)
        await same(source, target)
        for store in (source, target):  # both go on
            await store.append(notes("thread/0", "later"))
            await seal_now(store)
            assert (await verify(store)).ok


async def test_it_goes_on_where_a_copy_ended(source: LogStore, tmp_path: Path) -> None:
    first = await source.head()
    async with opened("sqlite", tmp_path) as target:
        await copy(source, target)
    await fill(source, seed=2, steps=60)
    async with opened("sqlite", tmp_path) as target:
        done = await copy(source, target)
        assert (done.kept, done.events) == (first, await source.head() - first)
        await same(source, target)
        assert (await copy(source, target)).events == 0


async def test_an_empty_log(tmp_path: Path) -> None:
    async with MemoryStore() as source, opened("sqlite", tmp_path) as target:
        assert (await copy(source, target)).events == 0
        assert target.incarnation == source.incarnation
    async with opened("sqlite", tmp_path) as target:
        assert target.incarnation == source.incarnation  # it was stored


async def test_the_source_grows_meanwhile(source: LogStore, tmp_path: Path) -> None:
    """Events that come while it copies are copied, as long as it copies."""
    grown = 0

    async def grow() -> None:
        nonlocal grown
        while grown < 40:
            await source.append(notes("thread/9", str(grown)))
            grown += 1

    async with opened("memory", tmp_path) as target, asyncio.TaskGroup() as group:
        before = await source.head()
        writer = group.create_task(grow())
        done = await copy(source, target)
        await writer
        assert done.head.seq >= before
        await copy(source, target)
        await same(source, target)


async def test_archived_events_are_whole_in_the_copy(source: LogStore, tmp_path: Path) -> None:
    """The target needs no object store; an object that is damaged or gone is named."""
    source.attach(DirectoryObjects(tmp_path / "objects"))
    for number in range(40):
        await source.append(notes("thread/old", str(number)))
    await seal_now(source)
    moved = await archive_threads(source, ["old"], before=2**62)
    assert moved.events == 39
    async with opened("sqlite", tmp_path) as target:
        await copy(source, target)
        await same(source, target)
    elsewhere = DirectoryObjects(tmp_path / "nothing")
    path = str(tmp_path / "source.db")
    async with (
        open_store(path, read_only=True, objects=elsewhere) as source,
        open_store("memory:") as target,
    ):
        with pytest.raises(StoreError, match=r"the source is damaged: event \d+ cannot be read"):
            await copy(source, target)
        assert (await verify(target)).ok


def all_bytes(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def erase(store: LogStore, seqs: list[int]) -> None:
    done = await redact(store, await plan_seqs(store, seqs), reason="asked to")
    assert done.events == len(seqs)


async def test_what_was_erased_meanwhile_is_erased_in_the_copy(tmp_path: Path) -> None:
    """Also in its files, and in rows that an earlier run had copied with their content."""
    async with MemoryStore() as source:
        for number in range(60):
            await source.append(notes(f"thread/{number % 3}", f"secret-{number}-secret"))
        await seal_now(source)
        await erase(source, [5])
        async with opened("sqlite", tmp_path) as target:
            await copy(source, target)
            await same(source, target)
        assert b"secret-50-secret" in (tmp_path / "target.db").read_bytes()
        await erase(source, [2, 51])
        await source.append(notes("thread/1", "more"))
        await erase(source, [33])
        async with opened("sqlite", tmp_path) as target:
            await copy(source, target)
            await same(source, target)
        files = all_bytes(tmp_path)
        for number in (1, 4, 32, 50):
            assert b"secret-%d-secret" % number not in files
        assert b"secret-3-secret" in files


async def test_erased_while_it_copies(tmp_path: Path) -> None:
    async with MemoryStore() as source, opened("sqlite", tmp_path) as target:
        for number in range(100):
            await source.append(notes("thread/a", f"secret-{number}-secret"))
        tasks: list[asyncio.Task[None]] = []

        def step(done: int, total: int) -> None:
            if not tasks and done > 10:
                tasks.append(asyncio.create_task(erase(source, [3, 70, 99])))

        await copy(source, target, step)
        await tasks[0]
        await copy(source, target)
        await same(source, target)


# ------------------------------------------------------------------------------ interruptions


class Interrupted(Exception):
    """The copy ended there."""


def interrupt(store: LogStore, after: int, happens: Callable[[], Awaitable[None] | None]) -> None:
    """Let something happen before the pages after the ``after``-th are written."""
    real, count = store.load, 0

    async def load(events: Sequence[Event], salts: Sequence[bytes], **more: Any) -> int:
        nonlocal count
        count += 1
        if count > after:
            waiting = happens()
            if waiting is not None:
                await waiting
        return await real(events, salts, **more)

    store.load = load  # type: ignore[method-assign]


def fail() -> None:
    raise Interrupted


def cancel() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(0, 120),
    points=st.lists(st.tuples(st.integers(0, 4), st.sampled_from((fail, cancel))), max_size=5),
)
async def test_random_logs_interrupted_at_random_points(
    seed: int, steps: int, points: list[tuple[int, Callable[[], None]]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with MemoryStore() as source:
            await fill(source, seed, steps)
            for number, (after, happens) in enumerate(points):
                async with opened("sqlite", Path(folder)) as target:
                    interrupt(target, after, happens)
                    with suppress(Interrupted, asyncio.CancelledError):
                        await asyncio.create_task(copy(source, target))
                async with opened("sqlite", Path(folder)) as target:
                    report = await verify(target)  # a whole log at any time
                    assert report.ok, report.problems
                await fill(source, seed + number + 1, 5)
            async with opened("sqlite", Path(folder)) as target:
                await copy(source, target)
                await same(source, target)


def copy_and_kill(command: list[str], target: Path, beyond: int, seconds: float) -> int:
    """Kill a copy once it has written past ``beyond``; how far it had got."""
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 30
        while stored(target) <= beyond and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(seconds)
        process.kill()
    return stored(target)


async def large(path: Path) -> None:
    async with open_store(str(path), synchronous="normal") as source:
        for number in range(24):
            await source.append_many([notes(f"thread/{i % 50}", "x" * 300) for i in range(2000)])
            if number % 4 == 0:
                await seal_now(source)


async def equal(path: Path, copied: Path) -> None:
    async with (
        open_store(str(path), read_only=True) as source,
        open_store(str(copied), read_only=True) as target,
    ):
        await same(source, target)


@pytest.mark.crash
def test_killed_and_run_again(tmp_path: Path) -> None:
    path, target = tmp_path / "source.db", tmp_path / "target.db"
    asyncio.run(large(path))
    end = stored(path)
    command = [sys.executable, "-m", "app", "copy", str(path), str(target)]
    reached = [0]
    for number in range(4):
        reached.append(copy_and_kill(command, target, reached[-1], 0.01 * number))
    assert 0 < reached[1] < end, reached
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    asyncio.run(equal(path, target))


def stored(path: Path) -> int:
    if not path.exists():
        return 0
    conn = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return int(conn.execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()[0])
    except sqlite3.OperationalError:  # not yet
        return 0
    finally:
        conn.close()


# ----------------------------------------------------------------------------------- refusals


async def test_another_log_is_refused(source: LogStore, tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as target:
        await target.append(notes("thread/0", "mine"))
        with pytest.raises(InputError, match="TARGET: it holds another log") as caught:
            await copy(source, target)
        assert caught.value.field == "TARGET"
        assert await target.head() == 1


@pytest.mark.parametrize("at", [1, 17, 40])
async def test_a_log_that_went_another_way_is_refused(
    source: LogStore, tmp_path: Path, at: int
) -> None:
    """As after a restore: the same incarnation and beginning, but other events then."""
    async with opened("sqlite", tmp_path) as target:
        await target.adopt(source.incarnation)
        rows = [row for row in await source.rows(after=0, limit=at) if isinstance(row, tuple)]
        await target.load([row[0] for row in rows], [row[1] for row in rows])
        await target.append(notes("thread/other", "mine"))
        before = await target.head()
        with pytest.raises(InputError, match=rf"differs from the source at event {at + 1}\b"):
            await copy(source, target)
        assert await target.head() == before


async def test_a_target_that_has_more_is_refused(source: LogStore, tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as target:
        await copy(source, target)
        await target.append(notes("thread/0", "mine"))
        with pytest.raises(InputError, match="the source only"):
            await copy(source, target)


async def test_somebody_writes_into_the_target(source: LogStore, tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as target:
        real, count = target.load, 0

        async def load(events: Sequence[Event], salts: Sequence[bytes], **more: Any) -> int:
            nonlocal count
            count += 1
            if count == 3:
                await target.append(notes("thread/0", "mine"))
            return await real(events, salts, **more)

        target.load = load  # type: ignore[method-assign]
        with pytest.raises(StoreError, match="written by somebody else"):
            await copy(source, target)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("UPDATE event SET data = X'00' WHERE seq = 41", "event 41 was changed"),
        ("UPDATE event SET actor = 'user:x' WHERE seq = 41", "event 41 was changed"),
        ("UPDATE event SET salt = X'00' WHERE seq = 41", "event 41 was changed"),
        ("DELETE FROM event WHERE seq = 41", "event 41 is missing"),
        ("DELETE FROM event WHERE seq >= 41 AND seq < 60", "event 41 is missing"),
        ("DELETE FROM stream WHERE id = (SELECT stream_id FROM event WHERE seq = 41)", "event "),
    ],
)
async def test_damage_is_named_and_not_copied(
    source: LogStore, tmp_path: Path, damage: str, message: str
) -> None:
    conn = sqlite3.connect(tmp_path / "source.db", isolation_level=None)
    conn.execute(damage)
    conn.close()
    async with opened("sqlite", tmp_path) as target:
        with pytest.raises(StoreError, match=f"the source is damaged: {message}"):
            await copy(source, target)
        assert await target.head() < 41
        assert (await verify(target)).ok


# -------------------------------------------------------------------------------- incarnation


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_life_is_adopted_by_an_empty_log_only(tmp_path: Path, kind: str) -> None:
    async with opened(kind, tmp_path) as store:
        assert await store.adopt("another") == store.incarnation == "another"
        await store.append(notes("thread/0", "mine"))
        with pytest.raises(StoreError, match="has events"):
            await store.adopt("a third")
        assert store.incarnation == "another"
        fresh = await store.adopt()
        assert fresh == store.incarnation != "another"
    if kind == "sqlite":
        async with opened(kind, tmp_path) as store:
            assert store.incarnation == fresh

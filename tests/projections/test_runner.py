"""The runner: exactly once, whatever happens to the process, the file, the log or an event."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from app.errors import EverlogError, InputError, StartupError
from app.events import catalogue as c
from app.events.codec import new
from app.events.envelope import Event, NewEvent
from app.events.memory import MemoryStore
from app.events.open import open_store
from app.events.store import Append
from app.projections import ledger, rebuild, runner, sqlite
from app.projections.database import Connection, Trouble, Where, connect
from app.projections.history import History as HistoryProjection
from app.projections.views import PROJECTIONS, Views, named
from tests.projections.histories import History, write
from tests.support.projections import apart, assert_rebuild_equals_live, dump

T = TypeVar("T")
ROOT = Path(__file__).parent.parent.parent


def long_log(threads: int, tokens: int) -> History:
    log = History()
    for n in range(threads):
        log.thread = f"t{n}"
        log.add(c.ThreadCreated(owner="local"))
        log.ask(1000 + n)
        log.generate(f"q{1000 + n}", *[f" w{i}" for i in range(tokens)])
        if n % 3:
            log.move(f"q{1000 + n}", "request.finished", text="whole")
            log.add(c.RunCompleted(run=f"r{1000 + n}"))
    return log


def seq_of(where: Where, name: str = "history") -> int:
    try:
        position = ask(where, lambda c: ledger.position(c, name))
    except Trouble:  # the child has not made the tables yet
        return -1
    return position.seq if position is not None else -1


def execute(where: Where, sql: str) -> None:
    """Change something behind the runner's back."""

    def run() -> None:
        connection = connect(where, "rebuild")
        try:
            connection.run(sql)
        finally:
            connection.close()

    apart(run)


def ask(where: Where, question: Callable[[Connection], T]) -> T:
    """Look at the tables beside the runner."""

    def run() -> T:
        connection = connect(where, "read")
        try:
            return question(connection)
        finally:
            connection.close()

    return apart(run)


def generations_in(where: Where) -> set[str]:
    """Generations that have tables."""
    names = [name for p in named(None) for name in ask(where, lambda c, p=p: c.tables(p.name))]
    return {"_".join(name.split("_")[:2]) for name in names}


def rebuilding(where: Where) -> bool:
    """Whether a rebuild is at work, or died at it."""
    return bool(ask(where, lambda c: c.all("SELECT name FROM rebuild")))


CHILD = """
import asyncio, sys
from app.events.open import open_store
from app.projections import rebuild, runner
from app.projections.views import PROJECTIONS, Views, named

runner.BATCH, runner.BULK, rebuild.BATCH = 50, 100, 100

async def main():
    async with open_store(sys.argv[1], read_only=True) as store:
        async with Views.open(store, sys.argv[2]) as views:
            if sys.argv[3] == "rebuild":
                await views.reached(await store.head())
                print("rebuilding", flush=True)
                await views.rebuild()
                print("rebuilt", flush=True)
            else:
                await views.reached(await store.head())

asyncio.run(main())
"""


def child(database: Path, where: Where, what: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(database), str(where), what],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )


def wait_until(condition: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.crash
async def test_killed_in_the_middle_of_batches(tmp_path: Path, where: Where) -> None:
    database = tmp_path / "log.db"
    async with open_store(str(database), synchronous="normal") as store:
        await write(store, long_log(60, 100).events)
        head = await store.head()
        kills, seen = 0, 0
        while seen < head and kills < 5:
            process = child(database, where, "run")
            wait_until(lambda seen=seen: seq_of(where) > seen)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills, seen = kills + 1, seq_of(where)
            if isinstance(where, Path):
                connection = connect(where)
                assert connection.one("PRAGMA integrity_check") == ("ok",)
                connection.close()
        assert kills > 1
        await assert_rebuild_equals_live(store, where)


@pytest.mark.crash
async def test_killed_in_the_middle_of_a_rebuild(
    tmp_path: Path, where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "log.db"
    async with open_store(str(database), synchronous="normal") as store:
        await write(store, long_log(60, 100).events)
        process = child(database, where, "rebuild")
        assert process.stdout is not None
        assert process.stdout.readline() == b"rebuilding\n"
        wait_until(lambda: rebuilding(where))
        process.send_signal(signal.SIGKILL)
        assert b"rebuilt" not in process.communicate()[0]
        before = dump(where)
        async with Views.open(store, where) as views:
            if isinstance(where, Path):  # Postgres knows at once
                with pytest.raises(EverlogError, match="being rebuilt"):
                    await views.rebuild()
            monkeypatch.setattr(rebuild, "STALE_SECONDS", 0.0)
            await asyncio.sleep(0.2)
            await views.rebuild()
        assert dump(where) == before
        assert len(generations_in(where)) == len(PROJECTIONS), "the dead rebuild's tables are gone"


async def test_another_process_rebuilds_while_this_one_writes_and_reads(
    tmp_path: Path, where: Where
) -> None:
    database = tmp_path / "log.db"
    async with open_store(str(database), synchronous="normal") as store:
        await write(store, long_log(30, 100).events)
        async with Views.open(store, where) as views:
            await views.reached(await store.head())
            process = child(database, where, "rebuild")
            posted = 0
            while process.poll() is None:
                posted += 1
                message = c.MessagePosted(message=f"new{posted}", role="user", content="hello")
                await store.append(Append(stream="thread/t1", events=[new(message)]))
                await views.reached(await store.head())
                row = await views.thread("t1")
                assert row is not None and row.messages == 2 + posted
                assert len(await views.threads(owner="local", limit=100)) == 30
                await asyncio.sleep(0.005)
            assert process.wait() == 0
            await views.reached(await store.head())
            assert {cp.generation for cp in await views.checkpoints()} == {2}
            process.communicate()
        await assert_rebuild_equals_live(store, where)


async def test_two_processes_may_keep_up_one_file(where: Where) -> None:
    log = long_log(12, 60)
    async with (
        MemoryStore() as store,
        Views.open(store, where) as one,
        Views.open(store, where) as two,
    ):
        for done in range(0, len(log.events), 20):
            await write(store, log.events[done : done + 20])
            await one.reached(await store.head())
            await two.reached(await store.head())
        await assert_rebuild_equals_live(store, where)


async def test_tables_taken_over_by_another_version(where: Where) -> None:
    async with MemoryStore() as store, Views.open(store, where) as views:
        await write(store, (log := long_log(2, 5)).events[:9])
        await views.reached(9)
        execute(where, "UPDATE projection SET version = 99 WHERE name = 'history'")
        await write(store, log.events[9:])
        await views.reached(len(log.events))
        with pytest.raises(EverlogError, match="another version of Everlog"):
            await views.reached(len(log.events), "history")
        assert seq_of(where) == 9 and seq_of(where, "timeline") == len(log.events)
        execute(where, "UPDATE projection SET version = 1 WHERE name = 'history'")
        await errors_are(views, set())
        await views.reached(len(log.events), "history")


async def test_a_swap_never_moves_readers_back(where: Where) -> None:
    log = long_log(2, 50)
    async with MemoryStore() as store, Views.open(store, where) as views:
        await write(store, log.events)
        await views.reached(len(log.events))
        filler = rebuild._Filler(where, named(None), store.incarnation)
        apart(filler.begin)
        apart(filler.fold, await store.fetch(limit=20))
        apart(filler.write)
        apart(filler.index)
        await rebuild._swap(store, filler)
        apart(filler.close)
        assert seq_of(where) == len(log.events)
        await assert_rebuild_equals_live(store, where)


async def test_swap_while_reading(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "BATCH", 500)
    async with MemoryStore() as store, Views.open(store, where) as views:
        await write(store, long_log(20, 50).events)
        await views.reached(await store.head())
        expected = await views.threads(owner="local"), await views.timeline("t1")
        progress: list[tuple[int, int, float]] = []
        reads = 0

        async def read() -> None:
            nonlocal reads
            while True:
                assert (await views.threads(owner="local"), await views.timeline("t1")) == expected
                reads += 1

        reader = asyncio.create_task(read())
        for _ in range(3):
            await views.rebuild(progress=lambda *at: progress.append(at))
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert reads > 3
        head = await store.head()
        assert progress[-1][:2] == (head, head) and progress[-1][2] > 0
        assert {cp.generation for cp in await views.checkpoints()} == {4}


async def test_rebuild_of_one_projection_leaves_the_others(where: Where) -> None:
    async with MemoryStore() as store, Views.open(store, where) as views:
        await write(store, long_log(3, 5).events)
        await views.reached(await store.head())
        done = await views.rebuild(["timeline"])
        assert done.generations == {"timeline": 2}
        assert done.events == done.seq == await store.head()
        found = {cp.name: cp.generation for cp in await views.checkpoints()}
        assert found == {"history": 1, "timeline": 2, "requests": 1, "metrics": 1}
        with pytest.raises(InputError, match="no projection 'nothing'"):
            await views.rebuild(["nothing"])


async def errors(views: Views) -> set[str]:
    return {cp.name for cp in await views.checkpoints() if cp.error is not None}


async def errors_are(views: Views, names: set[str]) -> None:
    for _ in range(500):
        if await errors(views) == names:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(await errors(views))


async def test_a_poison_event_stops_only_the_projections_that_need_it(
    where: Where, caplog: pytest.LogCaptureFixture
) -> None:
    log = long_log(2, 3)
    async with MemoryStore() as store:
        await write(store, log.events)
        poison = NewEvent(type="message.posted", data=b'{"message": 1}')
        good = new(c.RequestQueued(request="q9", params=c.SamplingParams(seed=1)), request="q9")
        await store.append(Append(stream="thread/t0", events=[poison, good]))
        head = await store.head()
        async with Views.open(store, where) as views:  # all in one batch
            with caplog.at_level(logging.ERROR):
                await views.reached(head, "requests")
                await views.reached(head)
            with pytest.raises(EverlogError, match=r"history stands still.*event \d+") as caught:
                await views.reached(head, "history")
            assert caught.value.hint == "Rebuild it: everlog rebuild history"
            standing = {cp.name: cp for cp in await views.checkpoints()}
            assert standing["requests"].error is None and standing["requests"].behind == 0
            for name in ("history", "timeline"):
                assert f"event {head - 1} (message.posted)" in str(standing[name].error)
                assert standing[name].seq == head - 2
                assert f"projection {name} cannot fold event {head - 1}" in caplog.text
            assert len(await views.threads(owner="local")) == 2, "it serves what it has"
            for span in await views.timeline("t0"):
                assert span.kind != "request" or span.detail["tokens"] == 3
            with pytest.raises(EverlogError, match="malformed"):
                await views.rebuild(["history"])
        async with Views.open(store, where) as views:  # a restart tries again, and stops again
            await views.reached(head)
            await errors_are(views, {"history", "timeline"})
            assert seq_of(where) == head - 2


async def test_a_bug_that_makes_rows_no_database_takes(
    where: Where,
) -> None:
    async with MemoryStore() as store, Views.open(store, where) as views:
        await write(store, long_log(1, 3).events)
        await views.reached(await store.head())
        huge = new(c.MessageFeedback(message="u1000", value=2**70))
        await store.append(Append(stream="thread/t0", events=[huge]))
        await views.reached(await store.head())
        with pytest.raises(EverlogError, match="history stands still"):
            await views.reached(await store.head(), "history")
        assert len(await views.threads(owner="local")) == 1


async def test_unknown_types_pass_live_and_stop_a_rebuild(where: Where) -> None:
    async with MemoryStore() as store, Views.open(store, where) as views:
        await write(store, long_log(1, 3).events)
        strange = [
            NewEvent(type="weather.changed", data=b"{}"),
            NewEvent(type="message.posted", schema=99, data=b"{}"),
        ]
        for event in strange:
            await store.append(Append(stream="thread/t0", events=[event]))
            await views.reached(await store.head())
            row = await views.thread("t0")
            assert row is not None and row.version == await store.stream_version("thread/t0")
            with pytest.raises(EverlogError, match="newer than this Everlog"):
                await views.rebuild()


async def test_rows_that_cannot_be_used_are_folded_again(
    where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = long_log(3, 5)

    async def generations(store: MemoryStore) -> dict[str, int]:
        async with Views.open(store, where) as views:
            await views.reached(await store.head())
            assert len(await views.threads(owner="local")) == await store.head() // 12
            return {cp.name: cp.generation for cp in await views.checkpoints()}

    async with MemoryStore() as store:
        await write(store, log.events)
        assert set((await generations(store)).values()) == {1}
        assert set((await generations(store)).values()) == {1}
        incarnation = store.incarnation
        monkeypatch.setattr(HistoryProjection, "version", 2)
        assert await generations(store) == {
            "history": 2,
            "timeline": 1,
            "requests": 1,
            "metrics": 1,
        }
    async with MemoryStore() as store:  # another log
        await write(store, log.events)
        assert await generations(store) == {
            "history": 3,
            "timeline": 2,
            "requests": 2,
            "metrics": 2,
        }
        incarnation = store.incarnation
    async with MemoryStore() as store:  # the same log, restored to an earlier end
        store.incarnation = incarnation
        await write(store, log.events[: len(log.events) // 2])
        async with Views.open(store, where) as views:
            await views.reached(await store.head())
            found = {cp.name: cp.generation for cp in await views.checkpoints()}
        assert found == {"history": 4, "timeline": 3, "requests": 3, "metrics": 3}
        await assert_rebuild_equals_live(store, where)


async def test_file_that_is_something_else(tmp_path: Path) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_text("not a database, but long enough to be taken for one " * 100)
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    async with MemoryStore() as store:
        for path in (text, other, tmp_path / "missing" / "views"):
            with pytest.raises(StartupError) as caught:
                async with Views.open(store, path):
                    pass
            assert caught.value.hint


async def test_file_that_is_locked_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    path = tmp_path / "views"
    async with MemoryStore() as store, Views.open(store, path) as views:
        other = connect(path)
        other.begin()
        await write(store, long_log(1, 3).events)
        await errors_are(views, set(PROJECTIONS))
        assert "trying again" in caplog.text
        other.rollback()
        other.close()
        await views.reached(await store.head())
        await errors_are(views, set())


async def test_closing_leaves_nothing_behind(where: Where) -> None:
    async with MemoryStore() as store:
        await write(store, long_log(20, 50).events)
        with pytest.raises(ValueError, match="mine"):
            async with Views.open(store, where):
                raise ValueError("mine")
        assert not Path(f"{where}-wal").exists(), "closed in order"  # noqa: ASYNC240
        await assert_rebuild_equals_live(store, where)


async def test_cancelled_at_any_moment(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "BATCH", 200)
    monkeypatch.setattr(runner, "BATCH", 50)
    monkeypatch.setattr(runner, "BULK", 100)

    async def keep_up(store: MemoryStore) -> None:
        async with Views.open(store, where) as views:
            await views.reached(10**9)

    async with MemoryStore() as store:
        await write(store, long_log(20, 50).events)
        for delay in (0.0, 0.001, 0.003, 0.01, 0.02, 0.03):
            task = asyncio.create_task(keep_up(store))
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await assert_rebuild_equals_live(store, where)
        async with Views.open(store, where) as views:
            before = dump(where)
            for delay in (0.0, 0.001, 0.003, 0.01, 0.02, 0.03):
                task = asyncio.create_task(views.rebuild())
                await asyncio.sleep(delay)
                task.cancel()
                await asyncio.wait([task])
                with anyio.move_on_after(delay):
                    await views.rebuild()
            await views.rebuild()
        assert dump(where) == before


async def test_the_runner_ends_with_the_store(where: Where) -> None:
    async with MemoryStore() as store, Views.open(store, where) as views:
        await store.aclose()
        for task in asyncio.all_tasks():
            if task.get_name() == "everlog-projections":
                await asyncio.wait_for(task, 5)
        assert await views.threads(owner="local") == []


class Watched(MemoryStore):
    """A log that remembers the pages that were fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: list[list[Event]] = []

    async def fetch(self, **of: Any) -> list[Event]:
        self.pages.append(await super().fetch(**of))
        return self.pages[-1]


async def test_large_payloads_come_in_small_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "FIRST", 8)
    monkeypatch.setattr(rebuild, "PAGE_BYTES", 40_000)
    log = History()
    for number in range(100):
        text = "long " * 2000 if 20 <= number < 60 else "short"
        log.add(c.MessagePosted(message=f"m{number}", role="user", content=text))
    async with Watched() as store:
        await write(store, log.events)
        await rebuild.rebuild(store, tmp_path / "views", named(None))
        pages = [page for page in store.pages if page]
        assert [event for page in pages for event in page] == await store.fetch()
        assert [len(page) for page in pages[:4]] == [8, 32, 6, 3]
        assert max(sum(len(event.data) for event in page) for page in pages[3:]) < 45_000
        assert len(pages[-2]) > 6, "they grow again"
        await assert_rebuild_equals_live(store, tmp_path / "views")


def test_settings_of_the_interpreter_come_back_when_the_last_rebuild_ends() -> None:
    before = gc.get_threshold(), sys.getswitchinterval()
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(rebuild._tuned)
    second.enter_context(rebuild._tuned)
    first.close()
    assert gc.get_threshold()[0] == rebuild.GARBAGE
    assert sys.getswitchinterval() == pytest.approx(rebuild.TURN_SECONDS)
    second.close()
    assert (gc.get_threshold(), sys.getswitchinterval()) == before


def test_batches_are_bounded() -> None:
    assert runner.BATCH <= runner.BULK <= 10_000

"""Group commit: batches, room, cancellation; and a store whose disk fails for a while."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.events.envelope import Event, NewEvent
from app.events.logstore import LogStore
from app.events.open import open_store
from app.events.ops import Op
from app.events.store import Append, Appended, StoreClosed, StoreError
from app.events.writer import GroupCommit


class Database:
    """Something slow to commit to."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.poison: dict[Any, Exception] = {}
        self.idle = 0

    async def commit(self, ops: list[Op]) -> Sequence[object]:
        await asyncio.sleep(0.002)
        for op in ops:
            if op in self.poison:
                raise self.poison[op]
        self.batches.append(list(ops))
        return [f"done {op}" for op in ops]

    async def tidy(self) -> None:
        self.idle += 1


@pytest.fixture
async def database() -> Database:
    return Database()


@pytest.fixture
async def writer(database: Database) -> AsyncIterator[GroupCommit]:
    writer = GroupCommit(database.commit, idle=database.tidy, idle_seconds=0.02, limit=10)
    writer.start()
    yield writer
    await writer.aclose()


async def test_a_batch_is_what_arrived_meanwhile(database: Database, writer: GroupCommit) -> None:
    tasks = [asyncio.create_task(writer.submit("first"))]  # type: ignore[arg-type]
    await asyncio.sleep(0.001)
    tasks += [asyncio.create_task(writer.submit(i)) for i in range(5)]  # type: ignore[arg-type]
    assert await asyncio.gather(*tasks) == ["done first", *(f"done {i}" for i in range(5))]
    assert database.batches == [["first"], [0, 1, 2, 3, 4]]


async def test_callers_wait_for_room_in_order(database: Database, writer: GroupCommit) -> None:
    tasks = [asyncio.create_task(writer.submit(i)) for i in range(35)]  # type: ignore[arg-type]
    await asyncio.gather(*tasks)
    assert [i for batch in database.batches for i in batch] == list(range(35))
    assert max(map(len, database.batches)) <= 10


async def test_the_writer_cannot_be_cancelled_by_callers(
    database: Database, writer: GroupCommit
) -> None:
    for i in range(10):
        task = asyncio.create_task(writer.submit(i))  # type: ignore[arg-type]
        await asyncio.sleep(0.0005 * i)
        task.cancel()
        await asyncio.wait([task])
    assert await writer.submit("end") == "done end"  # type: ignore[arg-type]
    assert sorted(i for batch in database.batches for i in batch if i != "end") == list(range(10))


async def test_one_bad_operation_fails_alone(database: Database, writer: GroupCommit) -> None:
    database.poison = {2: ValueError("no")}
    results = await asyncio.gather(
        *(writer.submit(i) for i in range(4)),  # type: ignore[arg-type]
        return_exceptions=True,
    )
    assert [str(r) for r in results] == ["done 0", "done 1", "no", "done 3"]


async def test_a_failing_storage_fails_the_batch_and_no_more(
    database: Database, writer: GroupCommit
) -> None:
    database.poison = {2: StoreError("disk")}
    results = await asyncio.gather(
        *(writer.submit(i) for i in range(4)),  # type: ignore[arg-type]
        return_exceptions=True,
    )
    assert [str(r) for r in results] == ["disk"] * 4
    assert await writer.submit(5) == "done 5"  # type: ignore[arg-type]


async def test_idle_work_happens_once_after_writing(
    database: Database, writer: GroupCommit
) -> None:
    await asyncio.sleep(0.05)
    assert database.idle == 0
    await writer.submit(1)  # type: ignore[arg-type]
    await asyncio.sleep(0.1)
    assert database.idle == 1


async def test_closing_refuses_who_waits_for_room(database: Database) -> None:
    writer = GroupCommit(database.commit, limit=2)
    writer.start()
    tasks = [asyncio.create_task(writer.submit(i)) for i in range(5)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await writer.aclose()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[:2] == ["done 0", "done 1"]
    assert all(isinstance(r, StoreClosed) for r in results[2:])


# ------------------------------------------------------------------------- a failing disk


def ping(text: bytes, stream: str = "thread/a") -> Append:
    return Append(stream=stream, events=[NewEvent(type="test.ping", data=text)])


async def on_writer(store: LogStore, statement: str) -> int:
    """Run a statement on the writing connection."""
    backend: Any = store._backend
    row = await backend._writer._execute(
        lambda: backend._writer._conn.execute(statement).fetchone()
    )
    return int(row[0])


async def test_a_full_disk(tmp_path: Path) -> None:
    async with open_store(f"{tmp_path}/log.db") as store:
        await store.append(ping(b"before"))
        seen: list[Event] = []

        async def follow() -> None:
            async for batch in store.follow():
                seen.extend(batch)

        following = asyncio.create_task(follow())
        pages = await on_writer(store, "PRAGMA page_count")
        await on_writer(store, f"PRAGMA max_page_count = {pages + 3}")
        results = await asyncio.gather(
            *(store.append(ping(b"x" * 9000, f"thread/{i}")) for i in range(8)),
            return_exceptions=True,
        )
        assert all(isinstance(r, StoreError) and "is full" in str(r) for r in results)
        assert await store.head() == 1
        assert await store.stream_version("thread/3") == 0
        await on_writer(store, "PRAGMA max_page_count = 1000000")
        assert await store.append(ping(b"after", "thread/3")) == Appended(2, 2, 1)
        await asyncio.sleep(0.01)
        assert [event.data for event in seen] == [b"before", b"after"]
        following.cancel()
    async with open_store(f"{tmp_path}/log.db") as store:
        assert [event.data async for event in store.read()] == [b"before", b"after"]


async def test_a_database_locked_by_another_program(tmp_path: Path) -> None:
    async with open_store(f"{tmp_path}/log.db") as store:
        await store.append(ping(b"before"))
        await on_writer(store, "PRAGMA busy_timeout = 50")
        with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="locked"):
                await store.append(ping(b"lost"))
            other.execute("ROLLBACK")
        assert await store.append(ping(b"after")) == Appended(2, 2, 2)

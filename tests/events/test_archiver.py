"""The archive a server keeps by itself: ages, failures, and one node at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from app.config import ArchiveConfig
from app.events import archiver as module
from app.events import catalogue as c
from app.events.archiver import DAY, Archiver
from app.events.codec import new
from app.events.logstore import LogStore
from app.events.moves import ArchiveBusy
from app.events.objects import DirectoryObjects
from app.events.open import open_store
from app.events.store import Append, Appended, StoreClosed

NOW = 10_000 * DAY


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", 10)
    monkeypatch.setattr(module, "SOON", 0.01)
    monkeypatch.setattr(module, "HOURLY", 0.05)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LogStore]:
    objects = DirectoryObjects(tmp_path / "objects")
    async with open_store("memory:", objects=objects) as store:
        yield store


async def message(store: LogStore, thread: str, days: float, deltas: int) -> None:
    """A streamed message of so many days ago."""
    time = NOW - int(days * DAY)
    payloads: list[c.Payload] = [
        c.ThreadCreated(owner="u"),
        c.MessageStarted(message="m"),
        *[c.MessageDelta(message="m", text="x")] * deltas,
        c.MessageCompleted(message="m"),
    ]
    events = [msgspec.structs.replace(new(payload), time=time) for payload in payloads]
    outcome = await store.append(Append(stream=f"thread/{thread}", events=events))
    assert isinstance(outcome, Appended)


def archiver(store: LogStore, streamed: float = 0, threads: float = 0, now: int = NOW) -> Archiver:
    config = ArchiveConfig(after_days=streamed, threads_after_days=threads)
    return Archiver(store, config, clock=lambda: now)


async def archived(store: LogStore) -> list[int]:
    return [part.segment.events for part in await store.segments()]


async def test_only_what_is_due(store: LogStore) -> None:
    await message(store, "a", days=40, deltas=20)
    await message(store, "b", days=20, deltas=20)
    await message(store, "c", days=1, deltas=20)
    await archiver(store).run()  # nothing is set: it ends at once
    task = archiver(store, streamed=30)
    await task.once()
    await task.once()
    assert await archived(store) == [20]
    await archiver(store, streamed=30, threads=15).once()
    assert sorted(await archived(store)) == [
        20,
        24,
    ]  # what is left of "a" but its last event, and "b"
    assert [row[0].stream for row in await store.hot(until=1000, types=("thread.created",))] == [
        "thread/c"
    ]


async def test_few_events_wait_for_more(store: LogStore) -> None:
    await message(store, "a", days=40, deltas=6)
    task = archiver(store, streamed=30)
    await task.once()
    assert await archived(store) == []
    await message(store, "b", days=40, deltas=6)
    await task.once()
    assert await archived(store) == [12]


async def test_a_failure_is_told_and_tried_again(
    store: LogStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await message(store, "a", days=40, deltas=20)
    (tmp_path / "file").write_text("in the way")
    store.attach(DirectoryObjects(tmp_path / "file" / "objects"))
    running = asyncio.ensure_future(archiver(store, streamed=30).run())
    with caplog.at_level(logging.INFO):
        while "archiving failed" not in caplog.text:  # noqa: ASYNC110 - a log rings no bell
            await asyncio.sleep(0.01)
        assert await archived(store) == []
        store.attach(DirectoryObjects(tmp_path / "objects"))
        while not await archived(store):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert "archived 20 events in 1 segments" in caplog.text
    await store.aclose()
    with pytest.raises(StoreClosed):
        await asyncio.wait_for(running, 10)


async def test_of_several_nodes_one_archives(postgres_url: str, tmp_path: Path) -> None:
    objects = DirectoryObjects(tmp_path / "objects")
    async with (
        open_store(postgres_url, objects=objects) as one,
        open_store(postgres_url, objects=objects) as two,
    ):
        await message(one, "a", days=40, deltas=20)
        async with one.archiving():
            with pytest.raises(ArchiveBusy):
                await archiver(two, streamed=30).once()
        async with asyncio.timeout(60):
            tasks = [archiver(store, streamed=30) for store in (one, two) for _ in range(2)]
            done = await asyncio.gather(*(task.once() for task in tasks), return_exceptions=True)
        assert all(error is None or isinstance(error, ArchiveBusy) for error in done)
        assert await archived(two) == [20]
        assert [e.type async for e in two.read(stream="thread/a")].count("message.delta") == 20
        assert [e.type async for e in one.read(stream="log")] == ["log.archived"]

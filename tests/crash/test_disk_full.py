"""A full disk: the service says so, loses nothing acknowledged, and goes on with room again."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.crash.checks import check_log
from tests.crash.load import Load
from tests.crash.plan import ROUNDS, seed
from tests.crash.room import Room, limited, mounted
from tests.crash.world import World, world

CHATTER = str(Path(__file__).parent / "chatter.py")
TIMES = max(ROUNDS // 4, 1)

pytestmark = [pytest.mark.crash, pytest.mark.timeout(90 + 60 * TIMES)]


async def refused(load: Load, count: int) -> None:
    """Wait until so many posts were refused in all."""
    async with asyncio.timeout(30):
        while sum(len(writer.refusals) for writer in load.writers) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def fill_and_free(house: World, room: Room, load: Load, moments: random.Random) -> None:
    """Fill the disk under load, look what is said of it, and make room again."""
    (server,) = house.edges
    said = sum(len(writer.refusals) for writer in load.writers)
    await asyncio.sleep(moments.uniform(0.2, 1.0))
    await asyncio.to_thread(room.fill)
    await asyncio.sleep(0.5)  # what is left of the write-ahead log's file can still be written
    posts = [asyncio.create_task(writer.post("Is there room?")) for writer in load.writers]
    await refused(load, said + len(posts))
    assert server.get("/healthz") == 200
    await asyncio.sleep(moments.uniform(0.0, 2.0))
    room.free()
    await asyncio.gather(*posts)
    await load.more()


async def try_it(house: World, room: Room, why: str) -> None:
    number = seed()
    print(f"\nseed {number}: TORTURE_SEED={number}")
    moments = random.Random(number)
    async with Load(house.front.url, 4, moments) as load:
        await load.more()
        for _ in range(TIMES):
            await fill_and_free(house, room, load, moments)
        await load.settle()
        assert why in {message for writer in load.writers for message in writer.refusals}
    assert why in house.edges[0].log()
    house.end()
    await check_log(Path(house.database), load.watchers)


async def test_a_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk") as room:
        database = room.folder / "log.db"
        async with world(tmp_path, database, CHATTER, "--no-engine", edges=1) as house:
            await try_it(house, room, f"the disk that holds {database} is full")


async def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    database = tmp_path / "disk" / "log.db"
    with limited(database.parent, lambda: house.edges[0].pid) as room:
        async with world(tmp_path, database, CHATTER, "--no-engine", edges=1) as house:
            await try_it(house, room, f"{database}: disk I/O error (SQLITE_IOERR_WRITE)")

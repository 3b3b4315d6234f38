"""Opening: URLs, the lock, read-only beside a writer, and errors that say what to do."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from app.errors import InputError, StartupError
from app.events.catalogue import ThreadRenamed
from app.events.codec import new
from app.events.envelope import NewEvent
from app.events.migration import migrations
from app.events.open import database_path, open_store
from app.events.store import Append, Appended, StoreClosed

WRITER = """
import asyncio, sys
from app.events.envelope import NewEvent
from app.events.open import open_store
from app.events.store import Append

async def main():
    async with open_store(sys.argv[1]) as store:
        print("open", flush=True)
        for line in sys.stdin:
            event = NewEvent(type="test.ping", data=line.strip().encode())
            await store.append(Append(stream="thread/a", events=[event]))
            print("done", flush=True)

asyncio.run(main())
"""


def ping(text: bytes = b"1") -> Append:
    return Append(stream="thread/a", events=[NewEvent(type="test.ping", data=text)])


@pytest.fixture
def writer(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that appends one event for each line it is given."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "log.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        yield child  # type: ignore[misc]


def tell(child: subprocess.Popen[str], text: str) -> None:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(text + "\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\n"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///a.db", Path("a.db")),
        ("sqlite:////data/a.db", Path("/data/a.db")),
        ("a.db", Path("a.db")),
        ("/data/a b?.db", Path("/data/a b?.db")),
        ("memory:", None),
    ],
)
def test_urls(url: str, path: Path | None) -> None:
    assert database_path(url) == path


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite:",
        "sqlite://a.db",
        "sqlite:///",
        "postgres:x/y",
        "mysql://x/y",
        "memory:x",
        "dir/",
    ],
)
def test_bad_urls_name_the_setting(url: str) -> None:
    with pytest.raises(InputError) as caught:
        database_path(url)
    assert caught.value.field == "database.url"


@pytest.mark.parametrize("name", ["log.db", "wei rd%20?#ü.db"])
async def test_a_log_outlives_its_process(tmp_path: Path, name: str) -> None:
    url = f"sqlite:///{tmp_path / name}"
    async with open_store(url) as store:
        first = store.incarnation
        await store.append(ping())
    async with open_store(url) as store:
        assert (store.incarnation, await store.head()) == (first, 1)
        assert await store.append(ping()) == Appended(2, 2, 2)
    assert (tmp_path / name).exists()
    assert not (tmp_path / f"{name}-wal").exists()


async def test_settings_of_the_writing_connection(tmp_path: Path) -> None:
    for synchronous, level in (("full", 2), ("normal", 1)):
        async with open_store(f"{tmp_path}/log.db", synchronous=synchronous) as store:  # type: ignore[arg-type]
            conn = store._backend._writer._conn  # type: ignore[attr-defined]

            def read(conn: sqlite3.Connection = conn) -> list[object]:
                names = ("journal_mode", "synchronous", "wal_autocheckpoint")
                return [conn.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

            found = await store._backend._writer._execute(read)  # type: ignore[attr-defined]
            assert found == ["wal", level, 0]


async def test_a_second_writer_is_refused_by_pid(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    with pytest.raises(StartupError, match=f"in use by process {writer.pid} "):
        async with open_store(f"{tmp_path}/log.db"):
            pass
    writer.kill()
    writer.wait()
    async with open_store(f"{tmp_path}/log.db") as store:  # the kernel dropped the dead one's lock
        await store.append(ping())
        with pytest.raises(StartupError, match=f"in use by process {os.getpid()} "):
            async with open_store(f"{tmp_path}/log.db"):
                pass


async def test_a_reader_follows_another_process(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    tell(writer, "0")
    async with open_store(f"{tmp_path}/log.db", read_only=True) as store:
        whole = store.follow()
        of_stream = store.follow(stream="thread/a", after=1)
        assert [e.data for e in await anext(whole)] == [b"0"]
        for i in range(1, 4):
            waiting = [asyncio.ensure_future(anext(f)) for f in (whole, of_stream)]
            await asyncio.sleep(0.02)
            await asyncio.to_thread(tell, writer, str(i))
            for task in waiting:
                [event] = await asyncio.wait_for(task, 5)
                assert (event.seq, event.data) == (i + 1, str(i).encode())
        assert await store.head() == 4
        assert await store.stream_version("thread/a") == 4
        assert len(await store.fetch(types=["test.ping"])) == 4
        assert await store.leases() == []
        with pytest.raises(StoreClosed, match="reading only"):
            await store.append(ping())
        with pytest.raises(StoreClosed, match="reading only"):
            await store.claim(worker="w", limit=1, lease=1)
        waiting = [asyncio.ensure_future(store.wait(after=99))]
        await asyncio.sleep(0.01)
    with pytest.raises(StoreClosed):
        await waiting[0]


async def test_reading_a_log_nobody_writes(tmp_path: Path) -> None:
    async with open_store(f"{tmp_path}/log.db") as store:
        await store.append(ping())
    before = (tmp_path / "log.db").read_bytes()
    async with open_store(f"{tmp_path}/log.db", read_only=True) as store:
        assert [e.data async for e in store.read()] == [b"1"]
    assert (tmp_path / "log.db").read_bytes() == before


async def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, it is a poem " * 100)
    with pytest.raises(StartupError, match="not a SQLite database"):
        async with open_store(f"{tmp_path}/text.db"):
            pass
    with pytest.raises(StartupError, match="No such file or directory") as caught:
        async with open_store(f"{tmp_path}/no/such/log.db"):
            pass
    assert "create the directory" in str(caught.value.hint)
    with pytest.raises(StartupError, match="does not exist"):
        async with open_store(f"{tmp_path}/none.db", read_only=True):
            pass
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(StartupError, match="cannot be opened"):
        async with open_store(f"{tmp_path}/folder.db"):
            pass


async def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    async with open_store(f"{tmp_path}/log.db"):
        pass
    with closing(sqlite3.connect(tmp_path / "log.db")) as conn, conn:
        number = len(migrations()) + 1
        conn.execute("INSERT INTO schema_migration VALUES (?, 'later', 'x', 0)", (number,))
    for read_only in (False, True):
        with pytest.raises(StartupError, match="does not know"):
            async with open_store(f"{tmp_path}/log.db", read_only=read_only):
                pass


async def test_reading_a_database_not_migrated(tmp_path: Path) -> None:
    (tmp_path / "log.db").touch()
    with pytest.raises(StartupError, match="lacks migration 0001_log") as caught:
        async with open_store(f"{tmp_path}/log.db", read_only=True):
            pass
    assert caught.value.hint == "run: everlog migrate"
    with closing(sqlite3.connect(tmp_path / "log.db")) as conn:
        conn.execute("CREATE TABLE x (y)")
    with pytest.raises(StartupError, match="holds no log, but something else"):
        async with open_store(f"{tmp_path}/log.db", read_only=True):
            pass


async def test_commands_are_forgotten_after_a_week(tmp_path: Path) -> None:
    for url in ("memory:", f"{tmp_path}/log.db"):
        async with open_store(url) as store:
            event = new(ThreadRenamed(title="x"))
            await store.append(Append(stream="thread/a", events=[event], command="c"))
            later = time.time_ns() + 8 * 24 * 3600 * 10**9
            store._clock = lambda later=later: later
            await store._tidy()
            store._ledger.restore(await store._backend.state())
            again = await store.append(Append(stream="thread/a", events=[event], command="c"))
            assert isinstance(again, Appended)

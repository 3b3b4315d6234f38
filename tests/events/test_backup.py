"""Backups of a live SQLite log: one snapshot, verified, and a new life when it is put back."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.errors import InputError
from app.events import backup as module
from app.events.backup import backup, is_backup
from app.events.open import open_store
from app.events.seal import Head, head
from app.events.store import StoreError
from app.events.verify import verify
from tests.contract.support import notes
from tests.events.copying import fill

ROOT = Path(__file__).parents[2]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    async def write() -> Path:
        path = tmp_path / "everlog.db"
        async with open_store(str(path), synchronous="normal") as store:
            await fill(store, seed=3, steps=100)
        return path

    return asyncio.run(write())


def head_of(path: Path, expected: Head | None = None) -> Head:
    async def read() -> Head:
        async with open_store(str(path), read_only=True) as store:
            report = await verify(store, expected=expected)
            assert report.ok, report.problems
            return await head(store)

    return asyncio.run(read())


async def put_back(path: Path, root: str) -> str:
    async with open_store(str(path)) as store:
        assert (await head(store)).root == root
        life = store.incarnation
        await store.append(notes("thread/0", "goes on"))
    async with open_store(str(path)) as store:
        assert store.incarnation == life  # once is enough
        assert (await verify(store)).ok
    return life


def around(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


def test_a_backup_is_the_log(log: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = backup(log, tmp_path / "copy.db", progress=lambda *args: calls.append(args))
    assert report.head == head_of(log) == head_of(tmp_path / "copy.db")
    assert calls[-1][0] == calls[-1][1] > 10_000
    assert is_backup(tmp_path / "copy.db") and not is_backup(log)
    assert not [name for name in around(log) if "partial" in name]
    copy = sqlite3.connect(tmp_path / "copy.db")
    assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)  # one file, no -wal
    copy.close()


def test_put_back_it_begins_a_new_life(log: Path, tmp_path: Path) -> None:
    """Each time: the same backup put back twice gives the same positions out twice."""
    before = head_of(log)
    backup(log, tmp_path / "copy.db")
    lives = {before.incarnation}
    for number in range(2):
        restored = tmp_path / f"{number}.db"
        shutil.copy(tmp_path / "copy.db", restored)
        lives.add(asyncio.run(put_back(restored, before.root)))
    assert len(lives) == 3


@contextmanager
def writing(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that appends without end."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.events.appender", str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        try:
            yield process
        finally:
            process.kill()


def test_while_another_process_writes(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGES", 1)  # many steps, commits between them
    with writing(log) as process:
        assert process.stdout is not None
        lines: list[str] = []

        def step(done: int, total: int) -> None:
            assert process.stdout is not None
            if done < total / 2:
                lines.append(process.stdout.readline())  # it has committed since

        for number in range(2):
            lines.append(process.stdout.readline())
            known = int(lines[-1].split()[0])
            report = backup(log, tmp_path / f"{number}.db", progress=step)
            assert report.head is not None
            assert report.head.seq >= known  # what was acknowledged before is in it
            assert int(lines[-1].split()[0]) > known
            assert process.poll() is None
    first, second = [head_of(tmp_path / f"{number}.db") for number in range(2)]
    assert first.seq < second.seq
    head_of(log, expected=first)
    head_of(log, expected=second)


def test_a_file_is_replaced_only_when_told(log: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy.db"
    file.write_text("precious")
    with pytest.raises(InputError, match="exists") as caught:
        backup(log, file)
    assert caught.value.field == "FILE" and file.read_text() == "precious"
    backup(log, file, force=True)
    assert head_of(file) == head_of(log)
    file.with_name("copy.db-wal").write_text("")
    with pytest.raises(InputError, match="in use as a database"):
        backup(log, file, force=True)


def test_somebody_faster_keeps_the_name(log: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy.db"

    def faster(done: int, total: int) -> None:
        file.write_text("faster")

    with pytest.raises(InputError, match="exists"):
        backup(log, file, checking=faster)
    assert file.read_text() == "faster"
    assert not [name for name in around(log) if "partial" in name]


@pytest.mark.parametrize("name", ["everlog.db", "no/such/copy.db", ".", "link.db"])
@pytest.mark.parametrize("force", [False, True])
def test_a_bad_name(log: Path, tmp_path: Path, name: str, force: bool) -> None:
    (tmp_path / "link.db").symlink_to(log)
    before = head_of(log)
    with pytest.raises(InputError) as caught:
        backup(log, tmp_path / name, force=force)
    assert caught.value.field == "FILE"
    assert head_of(log) == before


def test_a_damaged_log_leaves_the_old_backup(log: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy.db"
    good = backup(log, file).head
    conn = sqlite3.connect(log, isolation_level=None)
    conn.execute("UPDATE event SET data = X'00' WHERE seq = 9")
    conn.close()
    with pytest.raises(StoreError, match="damaged: event 9"):
        backup(log, file, force=True)
    assert head_of(file) == good
    assert not [name for name in around(log) if "partial" in name]


def test_no_log_there(tmp_path: Path) -> None:
    (tmp_path / "not.db").write_text("something else" * 100)
    with pytest.raises(StoreError, match="not a database"):
        backup(tmp_path / "not.db", tmp_path / "copy.db")
    assert around(tmp_path / "copy.db") == {"not.db"}


def test_interrupted_it_leaves_nothing(log: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backup(log, tmp_path / "copy.db", progress=stop)
    assert not [name for name in around(log) if "copy" in name]

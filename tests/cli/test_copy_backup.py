"""`everlog copy`, `everlog backup` and `everlog migrate --new-incarnation` on the story's log."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run, child
from tests.support.postgres import Cluster, binaries

pytestmark = pytest.mark.usefixtures("database")


def life(run: Run, path: str) -> str:
    return str(json.loads(run("head", "--json", "--database", path).stdout)["incarnation"])


# --------------------------------------------------------------------------------------- copy


def test_copy(run: Run) -> None:
    text = run("copy", "everlog.db", "sqlite:///copy.db").stdout
    assert "copied in" in text and "both logs are equal" in text
    for command in ("head", "threads", "verify", "events"):
        assert (
            run(command, "--json").stdout == run(command, "--json", "--database", "copy.db").stdout
        )
    again = json.loads(run("copy", "everlog.db", "copy.db", "--json").stdout)
    assert again["events"] == 0 and again["kept"] == again["head"]["seq"]
    text = run("copy", "everlog.db", "copy.db").stdout
    assert f"0 events copied after {again['kept']} that were there" in text


def test_to_postgres(run: Run, postgres: Cluster) -> None:
    url = postgres.new_database()
    assert "both logs are equal" in run("copy", "everlog.db", url).stdout
    assert "both logs are equal" in run("copy", url, "back.db").stdout
    heads = {
        run("head", "--json", "--database", where).stdout for where in ("everlog.db", "back.db")
    }
    assert len(heads) == 1


def test_passwords_are_not_shown(run: Run, postgres: Cluster) -> None:
    url = f"postgresql://nobody:secret@127.0.0.1:{postgres.port}/none"
    result = run("copy", "everlog.db", url, code=3)
    assert "cannot open postgresql://nobody@127.0.0.1" in result.stderr
    assert "secret" not in result.output


def test_a_copy_of_a_backup_begins_a_new_life(run: Run) -> None:
    run("backup", "saved.db")
    run("copy", "saved.db", "copy.db")
    assert life(run, "copy.db") != life(run, "everlog.db") == life(run, "saved.db")


@pytest.mark.parametrize(
    ("source", "target", "code", "message"),
    [
        ("everlog.db", "everlog.db", 2, "TARGET: is SOURCE itself"),
        ("everlog.db", "sqlite:///./everlog.db", 2, "TARGET: is SOURCE itself"),
        ("everlog.db", "memory:", 2, "TARGET: a log in memory"),
        ("memory:", "copy.db", 2, "SOURCE: a log in memory"),
        ("none.db", "copy.db", 3, "no log at none.db"),
        ("everlog.db", "mysql://x", 2, "TARGET: 'mysql' is no kind of database"),
        ("sqlite://x", "copy.db", 2, "SOURCE: 'sqlite://x' is not a path"),
        ("everlog.db", "no/such/copy.db", 3, "no/such"),
        ("text.db", "copy.db", 3, "not a SQLite database"),
        ("everlog.db", "text.db", 3, "not a SQLite database"),
        ("everlog.db", "other.db", 2, "TARGET: it holds another log"),
    ],
)
def test_what_cannot_be_copied(run: Run, source: str, target: str, code: int, message: str) -> None:
    Path("text.db").write_text("not a database, but long enough to look at" * 50)
    run("export", "log.jsonl")
    run("import", "log.jsonl", "--database", "other.db")  # the same events, another life
    result = run("copy", source, target, code=code)
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not Path("copy.db").exists() or source != "none.db"


@pytest.mark.crash
def test_ctrl_c_and_again(run: Run, database: Path) -> None:
    """On a terminal: a bar is shown; Ctrl-C ends it with 130; the same command goes on."""
    enlarge(database)
    command = [sys.executable, "-m", "app", "copy", str(database), str(database) + ".copy"]
    master, slave = pty.openpty()
    with subprocess.Popen(command, cwd=ROOT, stdout=slave, stderr=slave, stdin=slave) as process:
        os.close(slave)
        shown = b""
        while b"Copying" not in shown:
            shown += os.read(master, 1000)
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            try:
                shown += os.read(master, 1000)
            except OSError:
                break
        assert process.wait(20) == 130, shown
    os.close(master)
    assert b"Traceback" not in shown
    done = json.loads(run("copy", str(database), str(database) + ".copy", "--json").stdout)
    assert done["kept"] > 0 and done["kept"] + done["events"] == done["head"]["seq"]


def enlarge(database: Path) -> None:
    import asyncio

    from app.events.open import open_store
    from tests.contract.support import notes

    async def write() -> None:
        async with open_store(str(database), synchronous="normal") as store:
            for _ in range(30):
                await store.append_many([notes(f"thread/{i}", "x" * 200) for i in range(2000)])

    asyncio.run(write())


# ------------------------------------------------------------------------------------- backup


def test_backup_and_put_back(run: Run, tmp_path: Path) -> None:
    text = run("backup", "saved.db").stdout
    head = json.loads(run("head", "--json").stdout)
    assert f"{head['seq']} events in saved.db" in text and head["root"] in text
    result = run("backup", "saved.db", code=2)
    assert "FILE: saved.db exists" in result.stderr and "--force" in result.stderr
    saved = run("backup", "saved.db", "--force", "--json").stdout
    Path("saved.json").write_text(saved)
    assert run("verify", "--database", "saved.db", "--head", "saved.json").exit_code == 0
    assert life(run, "saved.db") == head["incarnation"]
    shutil.copy("saved.db", "restored.db")
    run("migrate", "--database", "restored.db")  # as `serve` does: the first to write
    assert life(run, "restored.db") != head["incarnation"]


def test_backup_of_a_served_log(run: Run, database: Path) -> None:
    with child(
        "serve", "--port", "0", "--no-engine", "--database", str(database), stderr=subprocess.PIPE
    ) as server:
        deadline = time.monotonic() + 30
        lock = database.with_name(database.name + ".lock")
        while not (lock.exists() and lock.read_text().strip() == str(server.pid)):
            assert time.monotonic() < deadline and server.poll() is None
            time.sleep(0.05)
        run("backup", "saved.db")
        assert server.poll() is None
    run("verify", "--database", "saved.db")


def test_backup_of_postgres_names_its_tools(run: Run) -> None:
    result = run(
        "backup", "a b.dump", "--database", "postgresql://me:secret@db.example/everlog", code=1
    )
    assert "pg_dump --format=custom --file='a b.dump' postgresql://me@db.example/everlog" in (
        result.stderr
    )
    assert "secret" not in result.stderr


def test_dump_and_restore_of_postgres(run: Run, postgres: Cluster) -> None:
    """What docs/operations.md says, with the tools of Postgres, and read models in the dump."""
    url, restored = postgres.new_database(), postgres.new_database()
    run("copy", "everlog.db", url)
    threads = run("threads", "--json", "--database", url).stdout
    tools = binaries()
    assert tools is not None
    dump = ["--format=custom", "--file=everlog.dump", url]
    subprocess.run([tools / "pg_dump", *dump], check=True)
    subprocess.run([tools / "pg_restore", f"--dbname={restored}", "everlog.dump"], check=True)
    run("migrate", "--new-incarnation", "--database", restored)
    run("verify", "--database", restored)
    assert life(run, restored) != life(run, url)
    assert run("threads", "--json", "--database", restored).stdout == threads


# -------------------------------------------------------------------------------- incarnation


def test_a_new_life_on_request(run: Run) -> None:
    before = life(run, "everlog.db")
    run("migrate")
    assert life(run, "everlog.db") == before
    run("migrate", "--new-incarnation")
    assert life(run, "everlog.db") != before
    result = run("migrate", "--check", "--new-incarnation", code=2)
    assert "--new-incarnation" in result.stderr
    run("verify")

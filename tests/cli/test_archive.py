"""`everlog archive` and `everlog restore`, on a real log, a real directory and a real S3."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run, child
from tests.cli.story import THREAD
from tests.support.s3 import CREDENTIALS, s3_server

pytestmark = pytest.mark.usefixtures("database")


def events(run: Run) -> list[dict[str, object]]:
    """All events but those about the log itself, which these commands append."""
    found = [json.loads(line) for line in run("events", "--json").stdout.splitlines()]
    return [event for event in found if event["stream"] != "log"]


def rows(database: Path) -> int:
    with closing(sqlite3.connect(database)) as conn:
        return int(conn.execute("SELECT count(*) FROM event").fetchone()[0])


def test_archive_read_and_restore(run: Run, database: Path) -> None:
    commands = (("show", THREAD), ("replay", THREAD, "--speed", "1000"), ("timeline", THREAD))
    before, count = events(run), rows(database)
    texts = [run(*command).stdout for command in commands]
    said = run("archive", "--before", "0", "--dry-run").stdout
    assert "would be archived" in said
    assert rows(database) == count
    found = json.loads(run("archive", "--before", "0", "--json").stdout)
    assert found["events"] > 0
    assert len(found["segments"]) == 1
    assert rows(database) == count - found["events"] + 1
    assert "nothing to archive" in run("archive", "--before", "0").stdout
    assert events(run) == before
    assert [run(*command).stdout for command in commands] == texts
    assert "✓" in run("verify").stdout
    assert "restored from 1 segment" in run("restore", "--thread", THREAD).stdout
    assert rows(database) == count + 2
    assert "Nothing of it" in run("restore", "--all").stdout
    assert events(run) == before
    assert list((database.parent / f"{database.name}.objects" / "archive").rglob("*.zst")) == []


def test_a_whole_thread(run: Run, database: Path) -> None:
    before = events(run)
    text, replay = run("show", THREAD).stdout, run("replay", THREAD, "--speed", "1000").stdout
    said = run("archive", "--thread", THREAD).stdout
    assert "archived in 1 segment" in said
    with closing(sqlite3.connect(database)) as conn:
        left = conn.execute(
            "SELECT count(*) FROM event JOIN stream s ON s.id = stream_id WHERE s.name = ?",
            (f"thread/{THREAD}",),
        ).fetchone()[0]
    assert left == 1
    Path(f"{database}.views").unlink(missing_ok=True)  # folded again, from the segment
    assert run("show", THREAD).stdout == text
    assert run("replay", THREAD, "--speed", "1000").stdout == replay
    assert events(run) == before
    run("export", "out.jsonl")
    run("import", "out.jsonl", "--database", "copy.db")
    assert "✓" in run("verify", "--database", "copy.db").stdout
    assert "✓" in run("restore", "--all").stdout
    assert events(run) == before


def test_idle_threads(run: Run) -> None:
    before = events(run)
    assert json.loads(run("archive", "--threads", "--before", "0", "--json").stdout)["events"] > 20
    assert json.loads(run("archive", "--threads", "--before", "0", "--json").stdout)["events"] == 0
    assert events(run) == before


def test_ages(run: Run, tmp_path: Path) -> None:
    assert "is needed" in run("archive", code=2).stderr
    assert "archive.after_days" in run("archive", code=2).stderr
    assert "threads_after_days" in run("archive", "--threads", code=2).stderr
    for wrong in ("soon", "-1", "2026-13-01", "1e9"):
        assert (
            "neither a number of days nor a date"
            in run("archive", "--before", wrong, code=2).stderr
        )
    assert "--threads" in run("archive", "--threads", "--thread", THREAD, code=2).stderr
    assert "one of them" in run("restore", code=2).stderr
    assert "one of them" in run("restore", "--all", "--thread", THREAD, code=2).stderr
    assert "nothing to archive" in run("archive", "--before", "1990-01-31").stdout
    (tmp_path / "everlog.toml").write_text("[archive]\nafter_days = 36500\n")
    assert "nothing to archive" in run("archive").stdout
    assert "would be" in run("archive", "--before", "2099-01-01T12:00:00+00:00", "--dry-run").stdout


def test_a_damaged_and_a_missing_segment(run: Run, database: Path) -> None:
    key = json.loads(run("archive", "--before", "0", "--json").stdout)["segments"][0]
    path = database.parent / f"{database.name}.objects" / key
    data = path.read_bytes()
    count = rows(database)
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    for command in (("restore", "--all"), ("events",), ("export", "out.jsonl")):
        assert "damaged" in run(*command, code=1).stderr
    assert "damaged" in run("verify", code=1).stdout
    path.unlink()
    result = run("restore", "--all", code=1)
    assert key in result.stderr
    assert "backup" in result.stderr
    assert rows(database) == count
    path.write_bytes(data)
    assert "✓" in run("restore", "--all").stdout


def test_a_missing_segment_makes_one_line_of_verify(run: Run, database: Path) -> None:
    count = json.loads(run("archive", "--before", "0", "--json").stdout)["events"]
    (segment,) = (database.parent / f"{database.name}.objects" / "archive").rglob("*.zst")
    segment.unlink()
    result = run("verify", code=1)
    lines = [line for line in result.stdout.splitlines() if "cannot be read" in line]
    assert len(lines) == 1 and f"✗ {count} events from " in lines[0], result.stdout
    assert "or of the objects" in result.stderr


def test_a_log_in_use(run: Run, database: Path) -> None:
    script = (
        "import asyncio, sys\nfrom app.events.open import open_store\n"
        "async def main():\n"
        "    async with open_store(sys.argv[1]):\n"
        "        print('open', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", script, str(database)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        assert "in use by process" in run("archive", "--before", "0", code=3).stderr
        holder.kill()
    assert "✓" in run("archive", "--before", "0").stdout


# ------------------------------------------------------------------------------------------- S3


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3_server() as endpoint:
        yield endpoint


def use(endpoint: str, bucket: str = "logs") -> None:
    Path("everlog.toml").write_text(
        f'[objects]\nurl = "s3://{bucket}/prod"\nendpoint = "{endpoint}"\npath_style = true\n'
    )


def test_s3(run: Run, s3: str, database: Path) -> None:
    use(s3)
    before, count = events(run), rows(database)
    result = run("archive", "--before", "0", code=1)
    assert "no bucket 'logs'" in result.stderr
    assert "objects.url" in result.stderr
    assert rows(database) == count
    assert events(run) == before
    urllib.request.urlopen(urllib.request.Request(f"{s3}/logs", method="PUT")).close()
    assert "✓" in run("archive", "--before", "0").stdout
    assert events(run) == before
    assert "✓" in run("verify").stdout
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    use(f"http://127.0.0.1:{port}")
    shown = run("events", "--json", code=1)
    assert "cannot be reached" in shown.stderr
    use(s3)
    assert "✓" in run("restore", "--all").stdout
    assert events(run) == before


@pytest.mark.crash
def test_interrupted_in_its_own_process(run: Run, database: Path) -> None:
    """The command itself, killed at a moment nobody chose."""
    before = events(run)
    for delay in (0.2, 0.35, 0.5, 0.65, 0.8):
        with child("archive", "--before", "0", "--database", str(database)) as process:
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.kill()
        assert events(run) == before
    run("archive", "--before", "0")
    assert events(run) == before
    assert "✓" in run("verify").stdout
    folder = database.parent / f"{database.name}.objects"
    with closing(sqlite3.connect(database)) as conn:
        known = {row[0] for row in conn.execute("SELECT object FROM segment")}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.zst")} == known

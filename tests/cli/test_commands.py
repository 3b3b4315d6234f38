"""Each command that looks into a log, on a real one."""

from __future__ import annotations

import errno
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app import __version__
from app.cli.doctor import _log
from app.cli.maintenance import _whole
from app.cli.reference import reference
from app.cli.root import ORDER
from app.config import Config, DatabaseConfig
from app.errors import EverlogError
from tests.cli.conftest import OTHER, ROOT, Run, child
from tests.cli.story import THREAD, events

COUNT = len(events()) + 2  # another conversation, and the seal

pytestmark = pytest.mark.usefixtures("database")


# --------------------------------------------------------------------------- conversations


def test_threads(run: Run) -> None:
    lines = run("threads").stdout.splitlines()
    assert "What is the capital of France?" in lines[1] + lines[2]
    assert "Another" in lines[1] + lines[2]
    found = json.loads(run("threads", "--json").stdout)["items"]
    assert {row["id"] for row in found} == {THREAD, OTHER}


def test_threads_shows_beginnings_that_other_commands_take(run: Run) -> None:
    for line in run("threads").stdout.splitlines()[1:]:
        run("show", line.split()[0])


def test_threads_search(run: Run) -> None:
    found = json.loads(run("threads", "--search", "atlantis", "--json").stdout)["items"]
    assert [row["id"] for row in found] == [THREAD]
    assert "No conversation" in run("threads", "--search", "zebra").stdout


def test_show(run: Run) -> None:
    text = run("show", THREAD).stdout
    assert text.index("What is the capital") < text.index("Paris is the capital.")
    assert "I could not find it. Sorry." in text
    state = json.loads(run("show", THREAD, "--json").stdout)
    assert [m["status"] for m in state["messages"]][:2] == ["done", "done"]
    assert state["id"] == THREAD


def test_show_at_any_point(run: Run) -> None:
    state = json.loads(run("show", THREAD, "--at", "11", "--json").stdout)
    assert (state["seq"], state["messages"][-1]["content"]) == (11, "Paris is the")
    result = run("show", OTHER, "--at", "3", code=1)
    assert "had not begun at seq 3" in result.stderr


def test_a_unique_beginning_names_a_thread(run: Run) -> None:
    assert json.loads(run("show", OTHER[:-1], "--json").stdout)["id"] == OTHER
    both = run("show", THREAD[:8], code=2)
    assert "2 conversations" in both.stderr
    assert OTHER in both.stderr
    assert "everlog threads" in run("show", "nope", code=1).stderr
    assert "no request or conversation" in run("timeline", "chatcmpl-nope", code=1).stderr
    assert "empty" in run("show", "", code=2).stderr


def test_timeline(run: Run) -> None:
    text = run("timeline", THREAD).stdout
    for part in ("on_message", "look_up (tool)", "request", "queue", "prefill", "decode", "tok/s"):
        assert part in text
    assert all(len(line) <= 100 for line in text.splitlines())
    tree = json.loads(run("timeline", THREAD, "--json").stdout)
    assert [span["kind"] for span in tree["spans"]] == ["run", "run"]
    assert "running" in run("timeline", THREAD, "--at", "10").stdout


def test_replay(run: Run) -> None:
    text = run("replay", THREAD, "--speed", "0").stdout
    assert "Paris is the\n" in text
    assert "I could not find it. Sorry." in text
    assert "Atlantis" not in run("replay", THREAD, "--speed", "0", "--until", "17").stdout
    items = json.loads(run("replay", THREAD, "--json").stdout)["items"]
    assert [item["at"] for item in items] == sorted(item["at"] for item in items)


def test_replay_takes_as_long_as_it_took(run: Run) -> None:
    items = json.loads(run("replay", THREAD, "--json").stdout)["items"]
    took = (items[-1]["at"] - items[0]["at"]) / 1e9
    start = time.monotonic()
    run("replay", THREAD, "--speed", "0.5")
    assert time.monotonic() - start >= 2 * took


# --------------------------------------------------------------------------------- the log


def test_events(run: Run) -> None:
    lines = run("events").stdout.splitlines()
    assert len(lines) == COUNT
    assert lines[0].split()[0] == "1"
    assert "thread.created" in lines[0]


def test_events_as_json_lines(run: Run) -> None:
    found = [json.loads(line) for line in run("events", "--json").stdout.splitlines()]
    assert [event["seq"] for event in found] == list(range(1, COUNT + 1))
    assert found[1]["data"]["content"] == "What is the capital of France?"


@pytest.mark.parametrize(
    ("args", "seqs"),
    [
        (["--after", str(COUNT - 2)], [COUNT - 1, COUNT]),
        (["--thread", OTHER], [COUNT - 1]),
        (["--thread", THREAD, "--after", "26"], [27, 28]),
        (["--type", "run.*", "--limit", "2"], [3, 17]),
        (["--type", "log.sealed", "--type", "thread.created"], [1, COUNT - 1, COUNT]),
    ],
)
def test_events_selected(run: Run, args: list[str], seqs: list[int]) -> None:
    found = [json.loads(line)["seq"] for line in run("events", "--json", *args).stdout.splitlines()]
    assert found == seqs


def test_unknown_event_type_gets_the_nearest(run: Run) -> None:
    assert "run.started" in run("events", "--type", "run.start", code=2).stderr


def test_events_follow(run: Run, database: Path) -> None:
    """New events appear while another process writes; Ctrl-C ends it with 130."""
    import asyncio
    import signal

    from app.events import catalogue as c
    from app.events.codec import new
    from app.events.open import open_store
    from tests.cli.conftest import append

    args = ["--follow", "--json", "--after", str(COUNT), "--database", str(database)]
    with child("events", *args, stdout=subprocess.PIPE) as reader:

        async def write() -> None:
            async with open_store(str(database)) as store:
                await append(store, OTHER, new(c.ThreadRenamed(title="Now")))

        asyncio.run(write())
        assert reader.stdout is not None
        assert json.loads(reader.stdout.readline())["data"] == {"title": "Now"}
        reader.send_signal(signal.SIGINT)
        assert reader.wait(10) == 130


def test_closed_pipe_is_quiet(database: Path) -> None:
    command = f"{sys.executable} -m app events --database {database} | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_head_and_verify(run: Run, tmp_path: Path) -> None:
    saved = run("head", "--json").stdout
    assert json.loads(saved)["seq"] == COUNT
    assert json.loads(saved)["root"] in run("head").stdout
    (tmp_path / "head.json").write_text(saved)
    text = run("verify", "--head", "head.json").stdout
    assert f"{COUNT} events" in text
    assert json.loads(run("verify", "--json").stdout)["ok"] is True


def test_verify_names_the_flipped_byte(run: Run, database: Path) -> None:
    saved = run("head", "--json").stdout
    Path("head.json").write_text(saved)
    found = database.read_bytes()
    at = found.index(b"capital of France")
    database.write_bytes(found[:at] + b"C" + found[at + 1 :])
    result = run("verify", code=1)
    assert "event 2 was changed" in result.stdout
    assert "seq 2" in result.stderr
    report = json.loads(run("verify", "--json", code=1).stdout)
    assert report["report"]["problems"][0]["seq"] == 2
    run("verify", "--head", "head.json", code=1)


def test_a_head_from_before_a_restore_is_not_called_damage(run: Run, tmp_path: Path) -> None:
    head = tmp_path / "head.json"
    head.write_text(run("head", "--json").stdout)
    begun = run("migrate", "--new-incarnation").stdout
    assert "clients start over" in begun
    assert json.loads(run("head", "--json").stdout)["incarnation"] in begun
    result = run("verify", "--head", str(head), code=1)
    assert "not the log of that head" in result.stderr
    assert "damaged" not in result.stderr


def test_saved_head_must_be_one(run: Run) -> None:
    Path("head.json").write_text("{}")
    assert "--head" in run("verify", "--head", "head.json", code=2).stderr


def test_rebuild(run: Run) -> None:
    assert "history, timeline, requests, metrics rebuilt" in run("rebuild").stdout
    done = json.loads(run("rebuild", "history", "--json").stdout)
    assert (list(done["generations"]), done["seq"]) == (["history"], COUNT)
    assert "no projection" in run("rebuild", "hstory", code=2).stderr


def test_a_half_export_is_none(run: Run, tmp_path: Path) -> None:
    assert "No space left" in run("export", "/dev/full", code=1).stderr
    kept = tmp_path / "kept.jsonl"
    run("export", str(kept))
    whole = kept.read_bytes()
    assert run("export").stdout.encode() == whole
    with pytest.raises(EverlogError, match="No space left"), _whole(kept) as out:
        out.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert kept.read_bytes() == whole
    assert [path.name for path in tmp_path.glob("kept*")] == ["kept.jsonl"]


def test_export_and_import(run: Run, database: Path) -> None:
    run("export", "log.jsonl")
    assert len(Path("log.jsonl").read_bytes().splitlines()) == COUNT
    run("import", "log.jsonl", "--database", "copy.db")
    assert json.loads(run("verify", "--json", "--database", "copy.db").stdout)["ok"]
    same = ["events", "--json"]
    assert run(*same, "--database", "copy.db").stdout == run(*same).stdout
    assert "not empty" in run("import", "log.jsonl", code=2).stderr


def test_migrate(run: Run) -> None:
    assert "up to date" in run("migrate", "--check").stdout
    run("migrate", "--check", "--database", "new.db", code=1)
    assert not Path("new.db").exists()
    assert "0001_log applied" in run("migrate", "--database", "new.db").stdout
    assert json.loads(run("migrate", "--json", "--database", "new.db").stdout) == {"applied": []}


# -------------------------------------------------------------------- settings, the machine


def test_config_show(run: Run) -> None:
    Path("everlog.toml").write_text("[server]\nport = 9000\n")
    text = run("config", "show", "--origin").stdout
    line = next(line for line in text.splitlines() if line.startswith("server.port"))
    assert line.split() == ["server.port", "9000", "everlog.toml:2"]
    shown = json.loads(run("config", "show", "--origin", "--json").stdout)
    assert shown["server.port"] == {"value": 9000, "origin": "everlog.toml:2"}
    assert "server.prot" in _settings_error(run, "[server]\nprot = 1")
    assert "70000" in _settings_error(run, "[server]\nport = 70000")


def _settings_error(run: Run, text: str) -> str:
    Path("everlog.toml").write_text(text)
    return run("config", "show", code=2).stderr


def test_doctor(run: Run) -> None:
    checks = json.loads(run("doctor", "--json").stdout)["checks"]
    assert {"python", "sqlite", "torch", "model", "memory", "disk", "database", "port"} <= {
        check["name"] for check in checks
    }


def test_doctor_looks_at_the_log(database: Path) -> None:
    config = Config(database=DatabaseConfig(url=f"sqlite:///{database}"))
    assert _log(config).finding == f"{database} is of this version"
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO schema_migration VALUES (99, 'later', 'x', 1)")
    connection.close()
    newer = _log(config)
    assert (newer.state, "0099_later" in newer.finding) == ("bad", True)
    database.write_text("no database")
    assert "not a SQLite database" in _log(config).finding
    database.unlink()
    assert _log(config).state == "good"


def test_doctor_finds_a_busy_port_and_a_missing_folder(run: Run) -> None:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        Path("everlog.toml").write_text(f"[server]\nport = {sock.getsockname()[1]}\n")
        result = run("doctor", "--json", "--database", "no/such/folder/x.db", code=1)
    bad = {c["name"] for c in json.loads(result.stdout)["checks"] if c["state"] == "bad"}
    assert bad == {"port", "database"}


# ------------------------------------------------------------------------- the command itself


def test_help_is_quick_and_complete(run: Run) -> None:
    text = run("--help").stdout
    assert all(f"  {name} " in text for name in ORDER)
    assert "..." not in text.partition("Commands:")[2]  # whole sentences
    assert "by default the one of the settings" in run("models", "--help").stdout
    started = time.monotonic()
    command = [sys.executable, "-m", "app", "--help"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert time.monotonic() - started < 2  # about 0.1 s on a quiet machine


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; import app.cli; "
        "print([m for m in ('torch', 'rich', 'asyncio', 'websockets', 'sqlite3', 'numpy',"
        " 'app.events.catalogue') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    loaded = set(json.loads(done.stdout.replace("'", '"')))
    assert loaded <= {"sqlite3"}


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"everlog, version {__version__}\n"


def test_usage_errors_exit_with_2(run: Run) -> None:
    run("show", code=2)
    run("nonsense", code=2)
    run("show", THREAD, "--at", "x", code=2)


@pytest.mark.parametrize("command", ["threads", "events", "head", "verify", "rebuild", "export"])
def test_no_log_says_what_to_do(run: Run, command: str) -> None:
    result = run(command, "--database", "missing.db", code=1)
    assert "There is no log at missing.db" in result.stderr
    assert "everlog serve" in result.stderr
    assert not Path("missing.db").exists()
    assert "memory" in run(command, "--database", "memory:", code=1).stderr


def test_not_a_database(run: Run) -> None:
    Path("text.db").write_text("hello " * 1000)
    assert "not a SQLite database" in run("events", "--database", "text.db", code=3).stderr


def test_colour_only_where_wanted(run: Run, database: Path) -> None:
    assert "\x1b" not in run("timeline", THREAD).stdout
    assert "\x1b" not in run("show", "nope", code=1).stderr


def test_a_damaged_database_is_an_error_not_a_traceback(run: Run, database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("DROP TABLE log")
    connection.close()
    result = run("events", code=3)
    assert result.stderr.startswith("error:")


def test_a_damaged_page_is_an_error_not_a_wait(run: Run, database: Path) -> None:
    """Read models cannot be folded from such a log; a server tries again, a command ends."""
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    with database.open("r+b") as file:
        page = file.read().index(b"message.posted") // size  # the first events, not the last one
        file.seek(page * size)
        file.write(b"\xff" * size)
    result = run("threads", code=1)
    assert "error: The log cannot be read to its end" in result.stderr
    assert "everlog verify" in result.stderr
    assert "damaged" in run("verify", code=1).stderr


def test_reference_is_current() -> None:
    page = ROOT / "docs" / "cli.md"
    assert page.read_text() == reference(), "run: python -m app.cli.reference > docs/cli.md"


def test_models_list(run: Run) -> None:
    text = run("models", "list").stdout
    assert "smollm2-135m-instruct" in text
    assert json.loads(run("models", "list", "--json").stdout)["used"] == "smollm2-135m-instruct"
    assert "no-such-model" in run("models", "pull", "no-such-model", code=3).stderr

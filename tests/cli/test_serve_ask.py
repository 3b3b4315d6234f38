"""`serve` and `ask` as a user runs them: real processes, a scripted handler, no model."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.cli.ask import ELSEWHERE, SAMPLING
from app.events.catalogue import SamplingParams
from tests.cli.conftest import child
from tests.support.server import ROOT, Server, free_port, running

HANDLER = """
import asyncio, json
from app import Message, on_message, step

@step(type="tool")
async def look_up(name):
    return name.upper()

@on_message
async def answer(asked: Message) -> None:
    match asked.content:
        case "fail":
            raise ValueError("it broke")
        case "params":
            await Message(content=json.dumps(asked.metadata.get("params"))).send()
        case "count":
            message = Message()
            for n in range(1000):
                await message.stream_token(f"{n} ")
                await asyncio.sleep(0.02)
        case _:
            message = Message(content="")
            await message.stream_token("You said ")
            await message.stream_token(await look_up(asked.content))
            await message.update()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "chat.py").write_text(HANDLER)
    with running(folder / "log.db", str(folder / "chat.py"), "--no-engine") as server:
        yield server


def everlog(*args: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", *args]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, **options
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def ask(server: Server, *args: str, code: int = 0, **options: Any) -> Any:
    return everlog("ask", "--url", server.url, *args, code=code, **options)


def answer(server: Server, *args: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(server, "--json", *args, code=code).stdout)
    return found


# ------------------------------------------------------------------------------------- ask


def test_ask_prints_the_answer_and_nothing_else(server: Server) -> None:
    done = ask(server, "hello", "there")
    assert done.stdout == "You said HELLO THERE\n"
    assert done.stderr == ""


def test_ask_reads_stdin(server: Server) -> None:
    assert ask(server, "-", input="from a pipe").stdout == "You said FROM A PIPE\n"


def test_ask_json(server: Server) -> None:
    found = answer(server, "hello")
    assert found["text"] == "You said HELLO"
    assert found["finish_reason"] == "stop"
    assert {"thread", "request", "usage"} <= found.keys()


def test_ask_goes_on_with_a_thread(server: Server) -> None:
    thread = answer(server, "one")["thread"]
    assert answer(server, "two", "--thread", thread)["thread"] == thread
    assert answer(server, "three", "--thread", thread[:35])["thread"] == thread
    found = everlog("show", thread, "--json", "--database", str(server.database)).stdout
    said = [m["content"] for m in json.loads(found)["messages"]]
    assert said[::2] == ["one", "two", "three"]
    assert "among the latest" in ask(server, "x", "--thread", "zzz", code=2).stderr


def test_sampling_parameters_reach_the_handler(server: Server) -> None:
    args = ["--temperature", "0", "--seed", "7", "--max-tokens", "5", "--stop", "a", "--stop", "b"]
    found = json.loads(answer(server, "params", *args, "--ignore-eos")["text"])
    assert found == {
        "temperature": 0,
        "seed": 7,
        "max_tokens": 5,
        "stop": ["a", "b"],
        "ignore_eos": True,
    }
    assert answer(server, "params")["text"] == "null"
    assert "params.top_p" in ask(server, "x", "--top-p", "2", code=2).stderr


def test_ask_knows_every_sampling_parameter() -> None:
    assert set(SAMPLING) | ELSEWHERE == set(SamplingParams.__struct_fields__)
    for field in msgspec.structs.fields(SamplingParams):
        assert field.name in ELSEWHERE or SAMPLING[field.name][0].__name__ in str(field.type)


def test_ask_fails_when_the_answer_does(server: Server) -> None:
    done = ask(server, "fail", code=1)
    assert "error: it broke" in done.stderr
    assert "everlog timeline" in done.stderr
    found = answer(server, "fail", code=1)
    assert (found["finish_reason"], found["error"]) == ("failed", "it broke")


def test_ask_without_a_server_says_what_to_do() -> None:
    done = everlog("ask", "hello", "--url", f"http://127.0.0.1:{free_port()}", code=1)
    assert done.stderr.startswith("error: No server at")
    assert "everlog serve" in done.stderr


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:1", "127.0.0.1:8000", "http://"])
def test_ask_refuses_what_is_no_url_of_a_server(url: str) -> None:
    assert "is not the URL of a server" in everlog("ask", "hello", "--url", url, code=2).stderr


def test_ctrl_c_stops_the_answer(server: Server) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with child("ask", "count", "--url", server.url, **pipes) as asking:
        assert asking.stdout is not None and asking.stderr is not None
        assert asking.stdout.read(6) == b"0 1 2 "
        asking.send_signal(signal.SIGINT)
        assert asking.wait(20) == 130
        assert asking.stderr.read() == b""
    args = ["threads", "--search", "count", "--json", "--database", str(server.database)]
    thread = json.loads(everlog(*args).stdout)["items"][0]["id"]
    state = json.loads(everlog("show", thread, "--json", "--database", str(server.database)).stdout)
    assert [run["status"] for run in state["runs"]] == ["stopped"]


# --------------------------------------------------------------- reading beside the server


def test_commands_work_beside_the_server(server: Server) -> None:
    thread = answer(server, "beside")["thread"]
    database = ["--database", str(server.database)]
    assert "beside" in everlog("threads", *database).stdout
    assert "look_up (tool)" in everlog("timeline", thread, *database).stdout
    assert "BESIDE" in everlog("replay", thread, "--speed", "0", *database).stdout
    assert json.loads(everlog("verify", "--json", *database).stdout)["ok"]
    everlog("rebuild", *database)
    assert "You said" in ask(server, "still here").stdout
    done = everlog("import", __file__, *database, code=3)
    assert f"process {server.pid}" in done.stderr


# ----------------------------------------------------------------------------------- serve


def test_serve_says_where_it_is(server: Server) -> None:
    text = server.log()
    assert server.url in text
    assert str(server.database) in text


def test_busy_port(server: Server, tmp_path: Path) -> None:
    args = ["serve", "--no-engine", "--port", str(server.port)]
    done = everlog(*args, "--database", str(tmp_path / "x.db"), code=3)
    assert f"{server.port}" in done.stderr
    assert "--port" in done.stderr


def test_database_in_use(server: Server) -> None:
    args = ["serve", "--no-engine", "--port", str(free_port())]
    done = everlog(*args, "--database", str(server.database), code=3)
    assert f"process {server.pid}" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        (["missing.py"], 2, "missing.py"),
        (["--watch"], 2, "--watch"),
        (["--port", "70000"], 2, "0 to 65535"),
        (["--no-engine", "--database", "no/such/folder/x.db"], 3, "no/such/folder"),
        (["--no-engine", "--database", "mysql://x"], 3, "mysql"),
        (["--no-engine", "--host", "256.1.1.1"], 3, "--host"),
        (["--model", "no-such-model"], 3, "no-such-model"),
    ],
)
def test_what_cannot_start_says_why(args: list[str], code: int, part: str) -> None:
    done = everlog("serve", "--port", str(free_port()), *args, code=code)
    assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_handler_file(tmp_path: Path) -> None:
    (tmp_path / "chat.py").write_text("def broken(:\n")
    args = ["serve", str(tmp_path / "chat.py"), "--no-engine", "--port", str(free_port())]
    done = everlog(*args, "--database", str(tmp_path / "x.db"), code=3)
    assert "chat.py:1" in done.stderr


def test_json_logs_when_nobody_looks(tmp_path: Path) -> None:
    env = {"EVERLOG_LOG__FORMAT": "auto"}
    with running(tmp_path / "log.db", "--no-engine", env=env) as server:
        pass
    lines = [json.loads(line) for line in server.log().splitlines()]
    ready = next(line for line in lines if "ready" in line["message"])
    assert ready["url"] == server.url
    assert ready["database"] == str(server.database)


def test_banner_on_a_terminal(tmp_path: Path) -> None:
    """A framed banner with the facts, and a clean end on Ctrl-C."""
    port = free_port()
    args = ["--no-engine", "--port", str(port), "--database", str(tmp_path / "x.db")]
    main, side = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    pipes = {"stdin": side, "stdout": side, "stderr": side}
    with child("serve", *args, env=env, start_new_session=True, **pipes) as serving:
        os.close(side)
        text = ""
        deadline = time.monotonic() + 30
        while "Ctrl-C" not in text and time.monotonic() < deadline:
            text += os.read(main, 4096).decode()
        serving.send_signal(signal.SIGINT)
        assert serving.wait(20) in (0, 130)
    os.close(main)
    assert f"http://127.0.0.1:{port}" in text
    assert "is ready" in text
    assert str(tmp_path / "x.db") in text


def test_default_url_follows_the_settings(server: Server, tmp_path: Path) -> None:
    env = {**os.environ, "EVERLOG_SERVER__PORT": str(server.port)}
    assert everlog("ask", "hi", env=env).stdout == "You said HI\n"


def test_ask_honours_the_names_of_platforms() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        env = {**os.environ, "PORT": str(sock.getsockname()[1])}
        assert "No server at" in everlog("ask", "hi", code=1, env=env).stderr

"""`everlog re-run` with the real model, on what a real server logged."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from app.events.ids import uuid7
from app.transport.client import Client
from tests.cli.conftest import OTHER, Run
from tests.cli.story import THREAD
from tests.support.server import running

pytestmark = pytest.mark.model


def post(url: str, body: dict[str, object]) -> dict[str, object]:
    """POST to the API of a server."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, object] = json.load(response)
    return found


async def ask(url: str, thread: str) -> None:
    async with Client(url) as client:
        params = {"max_tokens": 12, "temperature": 0.9, "ignore_eos": True}
        await client.post(thread, "Name a colour.", params=params)
        async for frame in client.follow(thread):
            if getattr(frame, "type", "") == "run.completed":
                return


def test_what_a_server_logged_comes_out_the_same(run: Run, tmp_path: Path) -> None:
    database, thread = tmp_path / "everlog.db", uuid7()
    with running(database) as server:
        asyncio.run(ask(server.url, thread))
        body = {"model": "smollm2-135m-instruct", "prompt": "One, two,", "max_tokens": 9}
        given = post(
            f"{server.url}/v1/completions",
            {**body, "temperature": 1, "logprobs": 2, "ignore_eos": True},
        )
        beside = run("re-run", thread)  # also while the server has the log
    assert "12 tokens, all the same" in beside.stdout
    assert "1 of 1 generation came out the same." in beside.stdout
    before = database.read_bytes()
    found = json.loads(run("re-run", str(given["id"]), "--json").stdout)
    assert found["same"]
    [one] = found["requests"]
    assert (one["verdict"], one["equal"], one["logprobs"]) == ("same", 9, 9)
    assert run("re-run", one["request"]).stdout.count("bit for bit") == 1
    assert database.read_bytes() == before


def test_what_was_deterministic_is_run_so_again(run: Run, tmp_path: Path) -> None:
    """Answers of a batch, one of them through a crash of the engine, in another batch."""
    database = tmp_path / "everlog.db"
    env = {"EVERLOG_ENGINE__DETERMINISTIC": "true", "EVERLOG_ENGINE__MAX_BATCH": "3"}
    body = {"prompt": "One, two, three,", "max_tokens": 40, "ignore_eos": True, "logprobs": 0}
    with running(database, env=env) as server, ThreadPoolExecutor() as pool:
        bodies = [{**body, "temperature": at % 2, "seed": at} for at in range(4)]
        answers = [pool.submit(post, f"{server.url}/v1/completions", b) for b in bodies]
        deadline = time.monotonic() + 60
        while not committed(database) and time.monotonic() < deadline:
            time.sleep(0.05)
        core = server.core_pid()
        assert core is not None
        os.kill(core, signal.SIGKILL)
        ids = [str(answer.result()["id"]) for answer in answers]
    [one] = json.loads(run("re-run", ids[1], "--json").stdout)["requests"]
    assert (one["verdict"], one["equal"], one["logprobs"]) == ("same", 40, 40)
    assert not one["notes"]


def committed(database: Path) -> int:
    """How many batches of tokens are in the log."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        query = "SELECT count(*) FROM events WHERE type = 'tokens.generated'"
        return int(db.execute(query).fetchone()[0])


@pytest.mark.usefixtures("database")
def test_a_difference_is_shown_with_its_reasons(run: Run) -> None:
    """The story was told by no model."""
    found = run("re-run", THREAD, code=1).stdout
    assert "✗ q1  0 of 4 tokens the same" not in found  # its prompt is not even there
    assert "✗ q1" in found
    assert "other weights: smol (ab) then" in found
    assert "0 of 1 generation came out the same." in found


@pytest.mark.usefixtures("database")
def test_where_there_is_nothing_to_run(run: Run) -> None:
    assert "nothing was generated" in run("re-run", OTHER, code=1).stderr
    assert "There is no request or conversation" in run("re-run", "nope", code=1).stderr
    run("redact", "--thread", THREAD, "--yes")
    assert "its content was erased" in run("re-run", THREAD, code=1).stderr

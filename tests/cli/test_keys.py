"""`everlog keys`: on a log nobody has open, and through the server that has it open."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from app.cli.keys import _rate, _when
from app.errors import InputError
from app.events.url import parse_url
from app.transport.control import Control, announced, find
from app.transport.keys import load
from tests.cli.conftest import Run
from tests.transport.serving import http, serving


def told(run: Run, *args: str) -> Any:
    return json.loads(run("keys", *args, "--json").output)


def test_a_key_is_shown_once_listed_and_revoked(run: Run, tmp_path: Path) -> None:
    made = run("keys", "create", "laptop", "--scope", "api,read", "--rate", "5/s")
    secret = made.stdout.strip()
    assert secret.startswith("evl_") and "not shown again" in made.stderr
    assert secret not in run("keys", "list").output
    (row,) = told(run, "list")["items"]
    assert row["scopes"] == ["api", "read"] and row["rate"] == 300 and row["user"] == "key:laptop"
    assert row["secret"] is None and row["state"] == "valid"
    files = b"".join(p.read_bytes() for p in tmp_path.iterdir() if p.is_file())
    assert secret.encode() not in files and secret.split("_", 2)[2].encode() not in files
    run("keys", "create", "laptop", code=2)
    assert "is revoked" in run("keys", "revoke", "laptop").output
    run("keys", "revoke", "laptop", code=1)
    assert told(run, "list") == {"items": []}
    assert told(run, "list", "--all")["items"][0]["state"] == "revoked"
    assert "There are no keys" in run("keys", "list").output
    assert "revoked" in run("keys", "list", "--all").output


def test_bad_input_is_named(run: Run) -> None:
    for args in (
        ("a b",),
        ("k", "--scope", "root"),
        ("k", "--rate", "x"),
        ("k", "--expires", "soon"),
        ("k", "--expires", "2001-01-01"),
        ("k", "--concurrency", "0"),
        ("k", "--database", "memory:"),
    ):
        run("keys", "create", *args, code=2)


def test_a_refused_key_makes_no_database(run: Run, tmp_path: Path) -> None:
    run("keys", "create", "a b", code=2)
    assert "There is no log" in run("keys", "revoke", "laptop", code=1).stderr
    assert not list(tmp_path.glob("everlog.db*"))


def test_rates_and_times() -> None:
    assert [_rate(text) for text in (None, "60", "60/min", "1/s", "120/h")] == [None, 60, 60, 60, 2]
    day = _when("1d")
    assert day is not None and abs(day - time.time_ns() - 86_400 * 10**9) < 10**10
    assert _when("2027-01-31") == 1801353600 * 10**9
    for text in ("60/day", "-1", "1//s"):
        with pytest.raises(InputError):
            _rate(text)


async def test_a_running_server_is_asked(run: Run, tmp_path: Path) -> None:
    async with serving(tmp_path, auth="required") as service:
        database = ("--database", service.config.database.url)
        place = tmp_path / "log.db.control"
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        made = await asyncio.to_thread(told, run, "create", "k", *database)
        header = {"authorization": f"Bearer {made['secret']}"}
        await asyncio.sleep(0.05)
        assert (await http(service.url + "/v1/nothing", **header)).status == 404
        again = await asyncio.to_thread(run, "keys", "create", "k", *database, code=2)
        assert "there is a key 'k' already" in again.output
        await asyncio.to_thread(run, "keys", "revoke", "k", *database)
        await asyncio.to_thread(run, "keys", "revoke", "k", *database, code=1)
        assert (await http(service.url + "/v1/nothing", **header)).status == 401
        assert len((await load(service.store)).all) == 1
    assert not place.exists()


def test_a_server_that_is_gone_is_not_asked(run: Run, tmp_path: Path) -> None:
    database = parse_url(f"sqlite:///{tmp_path / 'everlog.db'}")
    with announced(database, Control(url="http://127.0.0.1:9", token="t")):
        assert find(database) == Control(url="http://127.0.0.1:9", token="t")
        assert told(run, "create", "k")["name"] == "k"
    assert find(database) is None

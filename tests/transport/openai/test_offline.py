"""Batches without a server: what is read, what is written, and what a kill leaves."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from app.cli import everlog
from app.errors import InputError
from app.transport.openai import lines
from app.transport.openai.errors import ApiError
from app.transport.openai.journal import Journal, Key
from app.transport.openai.offline import Input
from tests.support.server import Process

CHAT = "/v1/chat/completions"


def line(id: str, **body: Any) -> dict[str, Any]:
    about = {"messages": [{"role": "user", "content": "Count."}], "temperature": 0, **body}
    return {"custom_id": id, "method": "POST", "url": CHAT, "body": about}


def write(path: Path, *given: Any) -> Path:
    texts = (each if isinstance(each, str) else json.dumps(each) for each in given)
    path.write_text("\n".join(texts) + "\n")
    return path


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().split("\n") if text]


# ---------------------------------------------------------------------------------- lines


@pytest.mark.parametrize(
    ("text", "param", "message"),
    [
        ("nonsense", None, "this is not JSON"),
        ("[]", "body", "expected `object`"),
        ('{"url":"/v1/completions","body":{}}', "custom_id", "custom_id is missing"),
        ('{"custom_id":1,"url":"x","body":{}}', "custom_id", "expected `str`"),
        ('{"custom_id":"","url":"/v1/completions","body":{}}', "custom_id", "1 to 512"),
        ('{"custom_id":"a","url":"/v1/moderations","body":{}}', "url", "url must be /v1/chat"),
        (
            '{"custom_id":"a","method":"GET","url":"/v1/completions","body":{}}',
            "method",
            "method must be POST",
        ),
        ('{"custom_id":"a","url":"/v1/completions","body":[]}', "body", "must be an object"),
    ],
)
def test_a_line_that_cannot_be_read_says_why(text: str, param: str | None, message: str) -> None:
    with pytest.raises(ApiError) as refused:
        lines.read(text.encode(), 1)
    assert refused.value.param == param
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("url", "body", "param"),
    [
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "stream": True}, "stream"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "functions": [1]}, "functions"),
        ("/v1/completions", {"prompt": ""}, "prompt"),
        ("/v1/embeddings", {"input": ["x", ""]}, "input[1]"),
        ("/v1/responses", {"input": "x", "background": True}, "background"),
        ("/v1/responses", {"input": "x", "previous_response_id": "r"}, "previous_response_id"),
    ],
)
def test_a_body_is_refused_as_the_api_refuses_it(
    url: str, body: dict[str, Any], param: str
) -> None:
    text = json.dumps({"custom_id": "a", "url": url, "body": body}).encode()
    with pytest.raises(ApiError) as refused:
        lines.plan(lines.read(text, 1), lambda name: ("m", "m"), created=0)
    assert refused.value.param == param


def test_input_names_what_is_wrong_by_line(tmp_path: Path) -> None:
    path = write(tmp_path / "in", line("a"), "", "{", line("b"), line("a"))
    with pytest.raises(InputError, match=r"in:5: custom_id 'a' is that of line 1 too"):
        Input(path)
    found = Input(write(path, line("a"), "", "{", line("b")))
    assert (found.numbers, list(found.faults), len(found)) == ({"a": 1, "b": 4}, [3], 3)
    assert [each.custom_id for each in found.lines()] == ["a", "b"]
    with pytest.raises(InputError, match="cannot be read: No such file"):
        Input(tmp_path / "none")


# -------------------------------------------------------------------------------- journal

KEYS = st.lists(st.one_of(st.text(min_size=1, max_size=4), st.integers(1, 99)), unique=True)


def result(key: Key) -> dict[str, Any]:
    if isinstance(key, int):
        return {"custom_id": None, "response": None, "error": {"line": key}}
    return {"custom_id": key, "response": {"status_code": 200}, "error": None}


@settings(max_examples=40, deadline=None)
@given(keys=KEYS, cut=st.integers(0, 400))
def test_whatever_a_kill_leaves_whole_results_count(
    tmp_path_factory: pytest.TempPathFactory, keys: list[Key], cut: int
) -> None:
    output = tmp_path_factory.mktemp("journal") / "out.jsonl"
    journal = Journal(output)
    for key in keys:
        journal.write(key, result(key))
    journal.close()
    data = journal.part.read_bytes()[:cut]
    journal.part.write_bytes(data)
    again = Journal(output)
    assert again.done == set(keys[: data.count(b"\n")])
    for key in keys:
        if key not in again.done:
            again.write(key, result(key))
    assert again.failed == sum(isinstance(key, int) for key in keys)
    order = {key: number for number, key in enumerate(reversed(keys))}
    again.finish(order.__getitem__)
    assert results(output) == [result(key) for key in reversed(keys)]
    assert not again.part.exists()


def test_two_processes_cannot_write_the_same_results(tmp_path: Path) -> None:
    first = Journal(tmp_path / "out")
    with pytest.raises(InputError, match="another process writes"):
        Journal(tmp_path / "out")
    first.close()


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    output = write(tmp_path / "mine.jsonl", line("a"))
    before = output.read_bytes()
    with pytest.raises(InputError, match=r"line 1 of .*mine\.jsonl is no result of a batch"):
        Journal(output)
    assert output.read_bytes() == before
    assert list(tmp_path.iterdir()) == [output]


def test_results_of_another_input_are_left_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out")
    journal.write("z", result("z"))
    journal.finish()
    path = write(tmp_path / "in", line("a"))
    ran = CliRunner().invoke(everlog, ["batch", str(path), "-o", str(tmp_path / "out")])
    assert ran.exit_code == 2
    assert "'z' is not in" in ran.stderr
    strict = ["batch", str(write(path, line("a"), "{")), "-o", str(tmp_path / "new"), "--strict"]
    ran = CliRunner().invoke(everlog, strict)
    assert (ran.exit_code, f"{path}:2: this is not JSON" in ran.stderr) == (2, True)
    assert not (tmp_path / "new").exists()


# -------------------------------------------------------------------------- the real thing


@pytest.mark.crash
@pytest.mark.model
def test_killed_and_started_again_it_repeats_nothing(tmp_path: Path) -> None:
    asked = [line(f"id-{n}", max_tokens=1 + n, ignore_eos=True) for n in range(12)]
    asked[5] = line("id-5", max_tokens=0)
    asked[6]["body"] |= {"logprobs": True, "n": 2}
    path = write(tmp_path / "in.jsonl", *asked, "not a line")
    output = tmp_path / "out.jsonl"
    part = Path(f"{output}.part")
    env = {"EVERLOG_ENGINE__DTYPE": "float32", "EVERLOG_ENGINE__MAX_CONTEXT": "256"}
    command = ("batch", str(path), "-o", str(output), "--max-batch", "2")
    process = Process(tmp_path / "printed", *command, env=env)
    process.spawn()
    deadline = time.monotonic() + 120
    while not part.exists() or part.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < deadline, process.log()
        time.sleep(0.01)
    process.kill(signal.SIGKILL)
    assert not output.exists()
    kept = part.read_bytes().splitlines(keepends=True)
    whole = [each for each in kept if each.endswith(b"\n")]
    assert 5 <= len(whole) < 13

    again = Process(tmp_path / "printed", *command, "--json", env=env)
    again.spawn()
    assert again.process is not None
    assert again.process.wait(120) == 1, again.log()  # some lines have failed
    assert not part.exists()
    found = output.read_bytes().splitlines(keepends=True)
    assert set(whole) <= set(found)
    said = results(output)
    assert [each["custom_id"] for each in said] == [each["custom_id"] for each in asked] + [None]
    assert said[5]["response"]["body"]["error"]["param"] == "max_tokens"
    assert said[12]["error"]["line"] == 13
    assert len(said[6]["response"]["body"]["choices"]) == 2
    lengths = [each["response"]["body"]["usage"]["completion_tokens"] for each in said[7:12]]
    assert lengths == [8, 9, 10, 11, 12]
    summary = json.loads(again.log()[again.log().index("{") :])
    assert (summary["done"], summary["failed"]) == (13 - len(whole), 2)

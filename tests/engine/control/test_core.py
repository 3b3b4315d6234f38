"""The core as a process, spoken to over a real socket, with the real model."""

from __future__ import annotations

import contextlib
import json
import os
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

from app.engine.channel import Decoder, encode
from app.engine.frames import (
    Add,
    Cancel,
    CoreConfig,
    Failed,
    Fatal,
    FromCore,
    Output,
    Ready,
    Started,
    Step,
    Stop,
    ToCore,
)
from app.engine.sampling import SamplingParams, Structured
from app.events.catalogue import ChatMessage

ROOT = Path(__file__).parents[3]
FRANCE = [ChatMessage(role="user", content="What is the capital of France?")]


class Core:
    """A core process and our end of its socket."""

    def __init__(self, config: CoreConfig) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(60)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.engine.core", str(theirs.fileno()), _json(config)],
            pass_fds=(theirs.fileno(),),
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        self.decoder: Decoder[FromCore] = Decoder(FromCore)
        self.frames: list[FromCore] = []

    def send(self, *frames: ToCore) -> None:
        self.socket.sendall(encode(frames))

    def receive(self) -> FromCore | None:
        while not self.frames:
            data = self.socket.recv(1 << 16)
            if not data:
                return None
            self.frames = self.decoder.feed(data)
        return self.frames.pop(0)

    def ended(self) -> int:
        """Exit status, after the end by itself."""
        return self.process.wait(30)

    def add(self, name: str, *, output: list[int] | None = None, **kwargs: Any) -> None:
        source = {k: kwargs.pop(k) for k in ("messages", "text", "prompt") if k in kwargs}
        source = source or {"messages": FRANCE}
        extra = {k: kwargs.pop(k) for k in ("deadline", "priority") if k in kwargs}
        params = SamplingParams(**{"max_tokens": 16, "seed": 1, **kwargs})
        self.send(Add(request=name, params=params, output=output or [], **source, **extra))

    def finish(self, *names: str) -> dict[str, list[Output]]:
        """Outputs until all the named requests ended; others must not have any."""
        outputs: dict[str, list[Output]] = {name: [] for name in names}
        left = set(names)
        while left:
            frame = self.receive()
            if isinstance(frame, Step):
                for output in frame.outputs:
                    outputs[output.request].append(output)
                    if output.reason is not None:
                        left.remove(output.request)
            elif isinstance(frame, Failed):
                left.discard(frame.request)
                outputs[frame.request].append(Output(frame.request, [], frame.message, frame.code))
            else:
                assert isinstance(frame, Started), frame
        return outputs

    def close(self) -> None:
        self.socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.process.kill()
        self.process.communicate()


def _json(config: CoreConfig) -> str:
    return msgspec.json.encode(config).decode()


@pytest.fixture(scope="module")
def core(model_path: Path) -> Iterator[Core]:
    core = Core(CoreConfig(model=str(model_path), threads=1, max_context=256, kv_memory=64 << 20))
    ready = core.receive()
    assert isinstance(ready, Ready)
    assert ready.context == 256
    assert ready.eos
    yield core
    core.close()


def text(outputs: list[Output]) -> str:
    return "".join(output.text for output in outputs)


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


def test_it_answers_token_by_token(core: Core) -> None:
    core.add("a")
    outputs = core.finish("a")["a"]
    assert text(outputs) == "The capital of France is Paris."
    assert all(len(output.tokens) == 1 for output in outputs)
    assert outputs[-1].reason == "stop"


def test_stop_strings_are_cut_across_tokens(core: Core) -> None:
    core.add("a", stop=("is Par",))
    outputs = core.finish("a")["a"]
    assert text(outputs) == "The capital of France "
    assert outputs[-1].reason == "stop"
    assert not any("is" in output.text for output in outputs)


@pytest.mark.parametrize("params", [{}, {"temperature": 0.8}, {"stop": ("France is P", "xyz")}])
def test_any_number_of_committed_tokens_goes_on_the_same(
    core: Core, params: dict[str, Any]
) -> None:
    core.add("whole", ignore_eos=True, max_tokens=8, **params)
    whole = core.finish("whole")["whole"]
    for done in range(1, len(whole) + 1):
        name = f"resumed {done}"
        core.add(name, ignore_eos=True, max_tokens=8, output=tokens(whole[:done]), **params)
        rest = core.finish(name)[name]
        assert tokens(whole[:done] + rest) == tokens(whole)
        assert text(whole[:done] + rest) == text(whole)
        assert rest[-1].reason == whole[-1].reason


def test_a_batch_gives_what_each_gives_alone(core: Core) -> None:
    prompts = {f"p{i}": "word " * (i * 7 + 1) for i in range(5)}
    alone = {}
    for name, prompt in prompts.items():
        core.add(name, text=prompt, temperature=0.7)
        alone[name] = tokens(core.finish(name)[name])
    for name, prompt in prompts.items():
        core.add(name, text=prompt, temperature=0.7)
    together = core.finish(*prompts)
    assert {name: tokens(outputs) for name, outputs in together.items()} == alone


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "colour": {"enum": ["dark red", "light blue"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "colour", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("params", [{}, {"temperature": 0.9}, {"logprobs": 1}])
def test_a_form_is_kept_to_from_any_committed_tokens_on(core: Core, params: dict[str, Any]) -> None:
    kwargs = {"structured": Structured(json_schema=PERSON), "max_tokens": 60, **params}
    core.add("whole", **kwargs)
    whole = core.finish("whole")["whole"]
    found = json.loads(text(whole))
    assert found.keys() == PERSON["properties"].keys()  # type: ignore[attr-defined]
    assert whole[-1].reason == "stop"
    jumped = any(len(output.tokens) > 1 for output in whole)
    assert jumped == ("logprobs" not in params)
    for done in range(0, len(whole), 4):
        core.add("resumed", output=tokens(whole[:done]), **kwargs)
        rest = core.finish("resumed")["resumed"]
        assert [output.tokens for output in whole[:done] + rest] == [o.tokens for o in whole]
        assert text(whole[:done] + rest) == text(whole)


def test_a_form_ends_the_answer_whatever_else_is_said(core: Core) -> None:
    form = Structured(choice=("yes", "no"))
    core.add("a", structured=form, min_tokens=9, max_tokens=12)
    core.add("b", structured=form, ignore_eos=True)
    core.add("c", structured=Structured(regex="[a-z]+"), min_tokens=6, max_tokens=6)
    core.add("d", structured=Structured(json_schema=PERSON), max_tokens=3)
    core.add("e", structured=Structured(json_schema=PERSON), max_tokens=60, stop=("colour",))
    outputs = core.finish("a", "b", "c", "d", "e")
    assert {text(outputs["a"]), text(outputs["b"])} <= {"yes", "no"}
    assert outputs["a"][-1].reason == outputs["b"][-1].reason == "stop"
    assert len(tokens(outputs["c"])) == 6 and text(outputs["c"]).isalpha()
    assert len(tokens(outputs["d"])) == 3 and outputs["d"][-1].reason == "length"
    assert text(outputs["e"]).endswith(', "') and outputs["e"][-1].reason == "stop"


def test_log_probabilities_come_with_the_tokens(core: Core) -> None:
    core.add("a", logprobs=3, prompt_logprobs=2, temperature=0.8, seed=4)
    outputs = core.finish("a")["a"]
    for output in outputs:
        assert output.logprobs is not None
        (one,) = output.logprobs
        assert len(one.top) == 3 and one.logprob <= one.top[0][1]
        assert dict(one.top).get(output.tokens[0], one.logprob) == one.logprob
    prompt = outputs[0].prompt
    assert prompt is not None and len(prompt) == 37
    assert prompt[0] is None and all(len(one.top) == 2 for one in prompt[1:] if one)
    assert all(output.prompt is None for output in outputs[1:])
    core.add("b", logprobs=3, prompt_logprobs=2, temperature=0.8, seed=4)  # cached by now
    again = core.finish("b")["b"]
    assert (again[0].prompt, again[0].tokens) == (prompt, outputs[0].tokens)
    core.add("c", prompt_logprobs=2, output=tokens(outputs[:2]))
    assert all(output.prompt is None for output in core.finish("c")["c"])


@pytest.mark.parametrize(
    ("kwargs", "code", "message"),
    [
        ({"messages": [ChatMessage(role="no such role!", content="x")]}, "invalid", "messages"),
        ({"messages": []}, "invalid", "messages"),
        ({"text": ""}, "invalid", "text: must not be empty"),
        ({"prompt": []}, "invalid", "prompt: must not be empty"),
        ({"prompt": [1, 10**6]}, "invalid", "prompt: token ids are 0 to"),
        ({"logit_bias": {10**6: 1.0}}, "invalid", "params.logit_bias: token ids are 0 to"),
        ({"processors": {"no such": 1}}, "invalid", "params.processors.no such: is not installed"),
        ({"structured": Structured(regex="(")}, "invalid", "params.structured"),
        ({"structured": Structured()}, "invalid", "params.structured"),
        (
            {"structured": Structured(choice=("a",)), "output": [9, 9, 9]},
            "invalid",
            "does not fit the form",
        ),
        ({"prompt": [5] * 256}, "context", "256"),
        ({"deadline": 1.0}, "timeout", "deadline"),
    ],
)
def test_a_bad_request_fails_and_the_others_go_on(
    core: Core, kwargs: dict[str, Any], code: str, message: str
) -> None:
    core.add("good")
    core.add("bad", **kwargs)
    outputs = core.finish("good", "bad")
    assert text(outputs["good"]) == "The capital of France is Paris."
    assert outputs["bad"][-1].reason == code
    assert message in text(outputs["bad"])


def test_the_answer_ends_at_the_context(core: Core) -> None:
    core.add("a", prompt=[5] * 250, ignore_eos=True, max_tokens=None)
    outputs = core.finish("a")["a"]
    assert len(tokens(outputs)) == 6
    assert outputs[-1].reason == "length"


def test_what_is_cancelled_says_nothing_more(core: Core) -> None:
    core.add("long", ignore_eos=True, max_tokens=200)
    while not isinstance(core.receive(), Step):
        pass
    core.send(Cancel(request="long"), Cancel(request="never heard of"))
    core.add("next")
    seen: list[Output] = []
    while not seen or seen[-1].reason is None:
        frame = core.receive()
        if isinstance(frame, Step):
            seen += [output for output in frame.outputs if output.request == "next"]
            assert not (seen and len(frame.outputs) > 1), "cancelled, and still computed"
    assert text(seen) == "The capital of France is Paris."


def test_ctrl_c_is_for_the_host(core: Core) -> None:
    core.process.send_signal(signal.SIGINT)
    core.add("a")
    assert core.finish("a")["a"]
    assert os.getpriority(os.PRIO_PROCESS, core.process.pid) > os.getpriority(os.PRIO_PROCESS, 0)
    assert Path(f"/proc/{core.process.pid}/comm").read_text() == "everlog-core\n"


def test_an_error_in_the_loop_ends_the_process_loudly_and_so_does_a_closed_socket(
    core: Core, model_path: Path
) -> None:
    """The last test of the shared process: it does not survive it."""
    core.add("twice", ignore_eos=True, max_tokens=200)
    core.add("twice")
    while (frame := core.receive()) is not None:
        last = frame
    assert isinstance(last, Fatal)
    assert "twice" in last.message
    assert core.ended() == 1
    assert core.process.stderr is not None
    assert b"Traceback" in core.process.stderr.read()


@pytest.mark.parametrize("end", ["stop", "close"])
def test_it_ends_when_told_and_when_the_host_is_gone(model_path: Path, end: str) -> None:
    core = Core(CoreConfig(model=str(model_path), threads=1, kv_memory=16 << 20, max_context=256))
    assert isinstance(core.receive(), Ready)
    core.add("a", ignore_eos=True, max_tokens=200)
    if end == "stop":
        core.send(Stop())
    else:
        core.socket.close()
    began = time.monotonic()
    assert core.ended() == 0
    assert time.monotonic() - began < 20
    core.close()


def test_a_missing_model_is_said_before_the_end(tmp_path: Path) -> None:
    core = Core(CoreConfig(model=str(tmp_path / "nothing.gguf")))
    fatal = core.receive()
    assert isinstance(fatal, Fatal)
    assert "nothing.gguf" in fatal.message
    assert core.receive() is None
    assert core.ended() == 3
    core.close()

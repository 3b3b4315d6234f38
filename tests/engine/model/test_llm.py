"""A model for scripts: no server, no log, and no torch in the caller's process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.engine import LLM, SamplingParams
from app.engine.child import CoreDied
from app.engine.llm import offline_config
from app.errors import InputError, StartupError
from app.events.catalogue import ChatMessage

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[3]
SMALL = {"max_context": 256, "dtype": "float32", "kv_memory": 64 << 20}
SHORT = SamplingParams(max_tokens=6)


@pytest.fixture(scope="module")
def llm(model_path: Path) -> Iterator[LLM]:
    with ThreadPoolExecutor(1) as pool:  # it outlives the thread that made it
        made = pool.submit(LLM, str(model_path), **SMALL).result()
    with made as loaded:
        yield loaded


def test_completions_come_in_the_order_of_their_prompts(llm: LLM) -> None:
    prompts = [f"{n}, {n + 1}, {n + 2}," for n in range(12)]
    params = [SamplingParams(max_tokens=2 + n % 3) for n in range(12)]
    found = llm.generate(prompts, params)
    assert [each.prompt for each in found] == prompts
    assert [len(each.tokens) for each in found] == [2 + n % 3 for n in range(12)]
    assert {each.reason for each in found} == {"length"}
    assert found[3].text.startswith(" 6")
    assert found[3].usage.completion_tokens == 2
    assert found[3].usage.prompt_tokens == 8


def test_one_prompt_is_one_in_every_form(llm: LLM) -> None:
    (text,) = llm.generate("The capital of France is", SHORT)
    assert text.text.startswith(" Paris")
    assert text.logprobs is None
    ids = [504, 3575, 282, 4649, 314]
    (tokens,) = llm.generate(ids, SHORT)
    assert tokens.usage.prompt_tokens == 5
    turns = [{"role": "user", "content": "What is 2+2?"}]
    (chat,) = llm.generate(turns, SHORT)
    assert (
        llm.chat([[ChatMessage(role="user", content="What is 2+2?")]], SHORT)[0].text == chat.text
    )
    assert llm.generate([]) == []


def test_vectors_come_in_the_order_of_their_prompts(llm: LLM) -> None:
    texts = ["A cat sits on the mat.", "Stock markets fell sharply.", "A kitten sits on a rug."]
    cat, stocks, kitten = llm.embed(texts)
    assert len(cat) == 576
    assert sum(a * a for a in cat) == pytest.approx(1, abs=1e-5)
    assert _dot(cat, kitten) > _dot(cat, stocks)
    (short,) = llm.embed([504, 3575], dimensions=8)
    assert len(short) == 8
    for bad, said in (([[1], [49152]], r"prompts\[1\].*0 to 49151"), (["a", ""], r"prompts\[1\]")):
        with pytest.raises(InputError, match=said):
            llm.embed(bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be 1 to 576, not 577"):
        llm.embed("a", dimensions=577)


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_probabilities_and_seeds(llm: LLM) -> None:
    params = SamplingParams(max_tokens=5, temperature=1.0, seed=9, logprobs=2, prompt_logprobs=0)
    once, again = llm.generate(["Once upon a time"] * 2, params)
    assert once.tokens == again.tokens
    assert once.logprobs is not None
    assert [len(each.top) for each in once.logprobs] == [2] * 5
    assert once.prompt_logprobs is not None
    assert once.prompt_logprobs[0] is None
    assert len(once.prompt_logprobs) == once.usage.prompt_tokens


def test_a_prompt_that_cannot_be_completed_is_named(llm: LLM) -> None:
    prompts = ["fine", [10**7], "word " * 600]
    with pytest.raises(InputError, match=r"^prompts\[[12]\]: (token ids|the prompt has)"):
        llm.generate(prompts, SHORT)
    fine, wrong, long = llm.generate(prompts, SHORT, strict=False)
    assert (fine.reason, fine.error, len(fine.tokens)) == ("length", None, 6)
    assert (wrong.reason, wrong.tokens) == ("error", [])
    assert "token ids" in (wrong.error or "")
    assert "256" in (long.error or "")


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        (["a", ""], SHORT, r"^prompts\[1\]: must not be empty"),
        (["a", [{"role": "user"}]], SHORT, r"^prompts\[1\]: no text, no token ids, no messages: "),
        (["a", "b"], [SHORT], r"^params: must be one, or 2"),
        ("a", SamplingParams(top_p=2), r"^params.top_p: must be between 0 and 1"),
        (["a"], [SamplingParams(max_tokens=0)], r"^params\[0\].max_tokens: must be at least 1"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    llm: LLM, prompts: list[str], params: SamplingParams, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        llm.generate(prompts, params)


def test_settings_are_the_engines() -> None:
    with pytest.raises(InputError, match="max_batches: there is no such setting"):
        LLM(max_batches=3)
    with pytest.raises(InputError, match="max_batch"):
        LLM(max_batch=0)
    with pytest.raises(StartupError, match="no-such-model"):
        LLM("no-such-model")
    assert offline_config(str(ROOT), {}).max_batch == 256


def test_a_core_that_dies_is_an_error(model_path: Path) -> None:
    llm = LLM(str(model_path), **SMALL)
    child = llm._child._process
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(CoreDied, match="SIGKILL"):
        llm.generate("Hello")
    with pytest.raises(CoreDied, match="closed"):
        llm.generate("Hello")
    llm.close()
    assert child.returncode == -signal.SIGKILL


SCRIPT = """
import sys
from app.engine import LLM, SamplingParams
assert "torch" not in sys.modules
llm = LLM(sys.argv[1], max_context=2048, dtype="float32")
print("loaded", flush=True)
try:
    llm.generate("Once", SamplingParams(max_tokens=2000, ignore_eos=True))
except KeyboardInterrupt:
    print(len(llm.generate("Once", SamplingParams(max_tokens=3))[0].tokens), flush=True)
assert "torch" not in sys.modules
print(llm._child._process.pid, flush=True)
"""


def test_ctrl_c_ends_prompts_and_not_the_model(model_path: Path) -> None:
    """And a script that ends without a word takes the engine's process with it."""
    command = [sys.executable, "-c", SCRIPT, str(model_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "loaded\n"
        time.sleep(0.3)
        script.send_signal(signal.SIGINT)
        assert script.stdout.readline() == "3\n"
        core = int(script.stdout.readline())
    assert script.returncode == 0
    deadline = time.monotonic() + 10
    while Path(f"/proc/{core}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)

"""Answers with drafts are those without: a random model, a scheduler, and every way to draw."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence as Series
from typing import Any

import pytest

from app.engine.blocks import BlockManager
from app.engine.channel import Channel, Decoder, encode
from app.engine.core import Core
from app.engine.frames import Add, CoreConfig, Failed, FromCore, Output, Step, Stop
from app.engine.runner import ModelRunner
from app.engine.sampling import SamplingParams, Structured, TokenLogprobs
from app.engine.scheduler import Propose, Scheduler
from app.engine.sequence import Sequence
from app.engine.speculation import Speculator
from tests.engine.model.test_llama import save

LENGTH = 40
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 1.0, "seed": 5},
    "nucleus": {"temperature": 0.8, "top_p": 0.8, "top_k": 20, "min_p": 0.01, "seed": 6},
    "penalties": {"frequency_penalty": 0.3, "presence_penalty": 0.2, "repetition_penalty": 1.1},
    "penalties drawn": {"temperature": 0.9, "repetition_penalty": 1.3, "seed": 8},
    "bias": {"logit_bias": {7: 3.0, 100: -5.0}},
    "repeats": {"logit_bias": {7: 90.0, 8: 60.0}, "frequency_penalty": 0.9},
    "min tokens": {"min_tokens": 20, "stop_token_ids": tuple(range(2, 60))},
    "stops": {"temperature": 1.0, "seed": 9, "stop_token_ids": tuple(range(2, 30))},
    "short": {"max_tokens": 7},
    "logprobs": {"logprobs": 3},
    "form": {"structured": Structured(regex=r"([a-f]{2} ){5}end"), "temperature": 1.0, "seed": 1},
    "form, scored": {"structured": Structured(regex=r"[a-f0-9 ]{12}"), "logprobs": 1},
}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    folder = tmp_path_factory.mktemp("drafts")
    save(folder)
    return ModelRunner.load(
        CoreConfig(model=str(folder), dtype="float32", threads=1, kv_memory=4 << 20)
    )


class Answer:
    """What became of a request."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.reason = ""
        self.steps = 0
        self.drafts = [0, 0]


def answers(
    runner: ModelRunner,
    prompts: dict[str, list[int]],
    propose: Propose | None = None,
    *,
    batch: int = 64,
    blocks: int = 200,
) -> dict[str, Answer]:
    """Run requests of all kinds that are named."""
    manager = BlockManager(blocks, runner.info.block_size)
    scheduler = Scheduler(
        manager, context=256, eos=runner.info.eos, max_batch=batch, propose=propose
    )
    found = {name: Answer() for name in prompts}
    for name, prompt in prompts.items():
        params = SamplingParams(**{"max_tokens": LENGTH, **KINDS[name]})
        sequence = Sequence(name, prompt, params)
        runner.prepare(sequence)
        assert scheduler.add(sequence)
    while scheduler.busy:
        works = scheduler.schedule(0.0)
        assert not any(isinstance(notice, Failed) for notice in scheduler.notices)
        before = [list(work.sequence.tokens) for work in works]
        draws = runner.execute(works)
        assert before == [work.sequence.tokens for work in works]
        for result in scheduler.commit(works, draws):
            answer = found[result.sequence.request]
            answer.tokens += result.tokens
            answer.logprobs += result.logprobs or ()
            answer.steps += 1
            answer.drafts[0] += result.drafts[0]
            answer.drafts[1] += result.drafts[1]
            if result.reason is not None:
                answer.reason = result.reason
                runner.release(result.sequence.request)
    assert manager.available == blocks
    return found


def prompts() -> dict[str, list[int]]:
    """Each begins in another way: of equal ones, all but one would wait for its blocks."""
    return {name: [(7 * i + at) % 200 + 40 for i in range(20)] for at, name in enumerate(KINDS)}


@pytest.fixture(scope="module")
def plain(runner: ModelRunner) -> dict[str, Answer]:
    return answers(runner, prompts())


def foreteller(plain: dict[str, Answer], longest: int, wrong: int) -> Propose:
    """Drafts the known answers; every so many places with a wrong token."""

    def propose(
        sequences: Series[Sequence], rooms: Series[int], budget: int
    ) -> list[tuple[int, ...]]:
        drafts = []
        for sequence, room in zip(sequences, rooms, strict=True):
            at = len(sequence.tokens) - sequence.prompt_len
            most = min(room, longest, budget)
            draft = plain[sequence.request].tokens[at : at + most]
            draft += [3] * (most - len(draft))  # behind the end of the answer too
            draft = [
                (token + 1) % 300 if (at + i) % wrong == wrong - 1 else token
                for i, token in enumerate(draft)
            ]
            budget -= len(draft)
            drafts.append(tuple(draft))
        return drafts

    return propose


@pytest.mark.parametrize(("longest", "wrong"), [(1, 1000), (3, 4), (16, 1000), (9, 7), (4, 1)])
def test_drafts_change_nothing(
    runner: ModelRunner, plain: dict[str, Answer], longest: int, wrong: int
) -> None:
    found = answers(runner, prompts(), foreteller(plain, longest, wrong))
    for name, answer in found.items():
        assert answer.tokens == plain[name].tokens, name
        assert answer.reason == plain[name].reason, name
        same(answer.logprobs, plain[name].logprobs)
    if wrong == 1:
        assert sum(answer.drafts[1] for answer in found.values()) == 0
    if longest == 16:
        assert found["greedy"].steps == 1 + -(-(LENGTH - 1) // 17)
        assert found["greedy"].drafts[1] == LENGTH - found["greedy"].steps


def test_drafts_with_few_blocks_and_preemptions(
    runner: ModelRunner, plain: dict[str, Answer]
) -> None:
    found = answers(runner, prompts(), foreteller(plain, 8, 5), blocks=22)
    assert {n: a.tokens for n, a in found.items()} == {n: a.tokens for n, a in plain.items()}


def test_what_repetition_foretells_comes_true(
    runner: ModelRunner, plain: dict[str, Answer]
) -> None:
    speculator = Speculator(8)
    for rows in range(1, 150):
        speculator._pace.add(rows, 1.0)  # rows cost nothing
    found = answers(runner, prompts(), speculator.propose)
    assert {n: a.tokens for n, a in found.items()} == {n: a.tokens for n, a in plain.items()}
    assert found["repeats"].steps < LENGTH // 2


def same(found: list[TokenLogprobs], expected: list[TokenLogprobs]) -> None:
    assert [one.logprob for one in found] == pytest.approx(
        [one.logprob for one in expected], abs=1e-4
    )
    for one, other in zip(found, expected, strict=True):
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


def spoken(runner: ModelRunner, speculation: str, **params: Any) -> tuple[str, list[Output]]:
    """The answer of a core, and what it came in."""
    ours, theirs = socket.socketpair()
    core = Core(CoreConfig(model="", speculation=speculation), runner, Channel(theirs))
    thread = threading.Thread(target=core.run)
    thread.start()
    try:
        add = Add(request="r", prompt=[60, 61, 62], params=SamplingParams(**params))
        ours.sendall(encode([add]))
        ours.settimeout(60)
        decoder: Decoder[FromCore] = Decoder(FromCore)
        outputs: list[Output] = []
        while not outputs or outputs[-1].reason is None:
            for frame in decoder.feed(ours.recv(1 << 16)):
                assert not isinstance(frame, Failed)
                if isinstance(frame, Step):
                    outputs += frame.outputs
        ours.sendall(encode([Stop()]))
    finally:
        thread.join(60)
        ours.close()
        theirs.close()
    assert core.scheduler.blocks.available == runner.info.num_blocks
    return "".join(output.text for output in outputs), outputs


def test_stop_strings_and_limits_within_drafts(runner: ModelRunner) -> None:
    params: dict[str, Any] = {
        "logit_bias": {70: 90.0, 71: 60.0},
        "frequency_penalty": 0.9,
        "max_tokens": 200,
        "ignore_eos": True,
    }
    text, plain = spoken(runner, "off", **params)
    found, outputs = spoken(runner, "ngram", **params)
    assert found == text
    assert sum(len(output.tokens) for output in outputs) == 200
    assert len(outputs) < len(plain) == 200
    drafted, right = (sum(output.drafts[i] for output in outputs) for i in (0, 1))
    assert 0 < right <= drafted
    assert right == 200 - len(outputs)
    stop = text[70:100]
    found, outputs = spoken(runner, "ngram", stop=(stop,), **params)
    assert found == text[: text.find(stop)]
    assert outputs[-1].reason == "stop"
    assert sum(o.drafts[1] for o in outputs) <= sum(len(o.tokens) for o in outputs)

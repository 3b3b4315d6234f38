"""``engine.deterministic``: a request's bits depend on the request alone."""

from __future__ import annotations

from collections.abc import Sequence as Series
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engine.blocks import BlockManager
from app.engine.frames import CoreConfig
from app.engine.models.invariant import InvariantLinears, cancelling, padded, sizes
from app.engine.models.linear import packs
from app.engine.models.llama import Llama
from app.engine.runner import ModelRunner
from app.engine.sampling import SamplingParams
from app.engine.scheduler import Propose, Scheduler
from app.engine.sequence import Sequence, Work
from app.errors import StartupError
from tests.engine.model.steps import Bench, prompt
from tests.engine.model.test_llama import VARIANTS, load, save, tokens

ASKED = (
    SamplingParams(max_tokens=24, logprobs=2, ignore_eos=True),
    SamplingParams(max_tokens=24, logprobs=0, temperature=1.0, seed=3, ignore_eos=True),
    SamplingParams(
        max_tokens=24, logprobs=1, temperature=0.7, top_p=0.9, seed=4, frequency_penalty=0.4
    ),
)
PROMPTS = (tokens(130), tokens(130)[:70] + tokens(9), tokens(3), tokens(64), tokens(1))
ALL = [(at, kind) for at in range(len(PROMPTS)) for kind in range(len(ASKED))]

Answer = tuple[list[int], list[Any]]


@pytest.fixture(scope="module", params=[1, 2], ids=["one thread", "two threads"])
def runner(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> ModelRunner:
    folder = tmp_path_factory.mktemp("deterministic")
    save(folder, intermediate_size=77)
    return load(folder, deterministic=True, threads=request.param)


def run(
    runner: ModelRunner,
    asked: Series[tuple[int, int]],
    *,
    batch: int = 8,
    budget: int = 512,
    blocks: int = 64,
    done: int = 0,
    known: dict[tuple[int, int], Answer] | None = None,
    propose: Propose | None = None,
) -> tuple[dict[tuple[int, int], Answer], int]:
    """Answers of prompts with parameters, by their numbers, and how often one was preempted.

    With ``done``, the first so many tokens of each were committed before a restart: ``known``.
    """
    scheduler = Scheduler(
        BlockManager(blocks, runner.info.block_size),
        context=runner.info.context,
        eos=runner.info.eos,
        max_batch=batch,
        max_tokens=budget,
        propose=propose,
    )
    found: dict[tuple[int, int], Answer] = {}
    for name in asked:
        at, kind = name
        before = ([], []) if not done or known is None else known[name]
        found[name] = (before[0][:done], before[1][:done])
        sequence = Sequence(repr(name), PROMPTS[at], ASKED[kind], output=before[0][:done])
        runner.prepare(sequence)
        assert scheduler.add(sequence)
    preempted = 0
    while scheduler.busy:
        works = scheduler.schedule(0.0)
        preempted += sum(type(notice).__name__ == "Preempted" for notice in scheduler.notices)
        scheduler.notices.clear()
        for result in scheduler.commit(works, runner.execute(works)):
            name = next(n for n in asked if repr(n) == result.sequence.request)
            found[name][0].extend(result.tokens)
            found[name][1].extend(result.logprobs or ())
            if result.reason is not None:
                runner.release(result.sequence.request)
    return found, preempted


@pytest.fixture(scope="module")
def alone(runner: ModelRunner) -> dict[tuple[int, int], Answer]:
    """Each request with nothing beside it, in one chunk, without interruption."""
    return {name: run(runner, [name])[0][name] for name in ALL}


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    asked=st.lists(st.sampled_from(ALL), min_size=2, max_size=8, unique=True),
    batch=st.integers(1, 8),
    budget=st.sampled_from([8, 17, 63, 200, 512]),
    blocks=st.sampled_from([12, 16, 30, 64]),
    done=st.integers(0, 20),
)
def test_whatever_else_is_computed(
    runner: ModelRunner,
    alone: dict[tuple[int, int], Answer],
    asked: list[tuple[int, int]],
    batch: int,
    budget: int,
    blocks: int,
    done: int,
) -> None:
    """Other batches, chunks, shared prefixes, preemptions, and a restart half way."""
    found, _ = run(runner, asked, batch=batch, budget=budget, blocks=blocks, done=done, known=alone)
    for name in asked:
        assert found[name] == alone[name], name


@pytest.mark.parametrize(("longest", "wrong"), [(1, 99), (5, 3), (9, 99)])
def test_drafts(
    runner: ModelRunner, alone: dict[tuple[int, int], Answer], longest: int, wrong: int
) -> None:
    """Tokens computed ahead, right ones and wrong ones, and one that comes after wrong ones."""
    proposed = 0

    def propose(
        sequences: Series[Sequence], rooms: Series[int], budget: int
    ) -> list[tuple[int, ...]]:
        nonlocal proposed
        drafts = []
        for sequence, room in zip(sequences, rooms, strict=True):
            at = len(sequence.tokens) - sequence.prompt_len
            answer = next(alone[name][0] for name in ALL if repr(name) == sequence.request)
            ahead = answer[at : at + min(room, longest, budget)]
            draft = [t if (at + i) % wrong else (t + 1) % 200 for i, t in enumerate(ahead)]
            budget -= len(draft)
            proposed += len(draft)
            drafts.append(tuple(draft))
        return drafts

    assert run(runner, ALL, propose=propose)[0] == alone
    assert run(runner, ALL[::4], propose=propose, blocks=30)[0] == {n: alone[n] for n in ALL[::4]}
    assert proposed


def test_after_preemption(runner: ModelRunner, alone: dict[tuple[int, int], Answer]) -> None:
    found, preempted = run(runner, ALL, blocks=22)
    assert preempted
    assert found == alone


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_of_every_variant(tmp_path: Path, name: str) -> None:
    """Raw logits: a chunk of one beside others, and the whole prompt."""
    save(tmp_path, **VARIANTS[name])
    runner = load(tmp_path, deterministic=True, threads=2)
    plain = load(tmp_path)
    bench = Bench(runner)
    ids = tokens(150)
    whole = runner.logits([bench.prefill(bench.sequence(ids))])[0]
    torch.testing.assert_close(
        whole,
        plain.logits([Bench(plain).prefill(Bench(plain).sequence(ids))])[0],
        atol=1e-3,
        rtol=1e-4,
    )
    sequence, crowd = bench.sequence(ids), [bench.sequence(tokens(n)) for n in (1, 67, 5)]
    runner.execute([Work(sequence, 0, 65), *(bench.prefill(s) for s in crowd)])
    runner.execute([Work(sequence, 65, 1), *(bench.prefill(s) for s in crowd)])
    runner.execute([Work(sequence, 66, 83)])
    row = runner.logits([*(bench.decode(s) for s in crowd), Work(sequence, 149, 1)])[-1]
    assert torch.equal(row, whole)


@pytest.mark.parametrize("size", [1, 5, 32, 100])
def test_block_sizes(tmp_path: Path, size: int) -> None:
    save(tmp_path)
    runner = load(tmp_path, deterministic=True, block_size=size)
    bench = Bench(runner)
    ids = tokens(120)
    whole = runner.logits([bench.prefill(bench.sequence(ids))])[0]
    sequence = bench.sequence(ids)
    runner.execute([Work(sequence, 0, 119)])
    assert torch.equal(runner.logits([bench.decode(sequence)])[0], whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns, inner", [(96, 57), (33, 576)])
@torch.inference_mode()
def test_products(dtype: torch.dtype, columns: int, inner: int) -> None:
    if dtype == torch.bfloat16 and not packs(torch.device("cpu"), dtype):
        columns = 8  # without instructions for it, it takes its time
    weight = cancelling(columns, inner, dtype=dtype)
    linear = InvariantLinears()(weight, torch.ones(columns, dtype=dtype))
    x = cancelling(400, inner, dtype=dtype, seed=1)
    whole = linear(x)
    for count in (1, 2, 3, 5, 9, 31, 33, 63, 65, 129, 256, 330):
        assert torch.equal(linear(x[400 - count :]), whole[400 - count :]), count
        residual = torch.zeros(count, columns, dtype=dtype)
        assert torch.equal(linear.add_to(residual, x[:count]), whole[:count])


def test_sizes() -> None:
    """A count whose places differ, or differ from the largest, is none."""

    def product(count: int) -> torch.Tensor:
        values = torch.zeros(count, 1)
        if count == 3:
            values[2] = 1e-7
        return values + (count == 1)

    assert sizes(product, [4, 3, 2, 1]) == [2, 4]
    assert sizes(lambda n: torch.arange(n), [1, 2]) == []
    assert [padded([2, 4], n) for n in (1, 2, 3, 4)] == [2, 2, 4, 4]


def test_architecture_that_does_not_offer_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path)
    monkeypatch.setattr(Llama, "invariant", False)
    with pytest.raises(StartupError, match="Llama does not offer it"):
        load(tmp_path, deterministic=True)


def test_a_model_that_breaks_the_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)
    head = Llama.head

    def biased(self: Llama, hidden: torch.Tensor) -> torch.Tensor:
        return head(self, hidden) + len(hidden)

    monkeypatch.setattr(Llama, "head", biased)
    with pytest.raises(StartupError, match="depend on what is computed beside them") as raised:
        load(tmp_path, deterministic=True)
    assert "engine.threads" in (raised.value.hint or "")


@pytest.mark.model
def test_the_real_model(model_path: Path) -> None:
    runner = ModelRunner.load(
        CoreConfig(model=str(model_path), deterministic=True, threads=1, max_context=256)
    )
    bench = Bench(runner)
    ids = prompt(80)
    whole = runner.logits([bench.prefill(bench.sequence(ids))])[0]
    sequence, other = bench.sequence(ids), bench.sequence(prompt(40))
    runner.execute([Work(sequence, 0, 33), bench.prefill(other)])
    runner.execute([Work(sequence, 33, 46)])
    assert torch.equal(runner.logits([bench.decode(other), bench.decode(sequence)])[1], whole)

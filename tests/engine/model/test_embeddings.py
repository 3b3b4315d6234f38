"""Vectors beside hidden states of transformers, on the same dequantized weights."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from app.engine.channel import Channel
from app.engine.core import Core
from app.engine.frames import Add, CoreConfig, Failed, Output, Step
from app.engine.models.linear import packs
from app.engine.runner import ModelRunner
from app.engine.sequence import Pooling, Sequence, Work
from app.events.catalogue import Embedding
from tests.engine.model.steps import GREEDY, Bench, prompt

pytestmark = pytest.mark.model

WIDTH = 576
CLOSE = 2e-5  # of vectors of length 1; sums run in other orders


@torch.inference_mode()
def states(oracle: Any, tokens: list[int]) -> torch.Tensor:
    """Last hidden states of the reference, ``[n, width]``."""
    found: torch.Tensor = oracle.model(torch.tensor([tokens])).last_hidden_state[0].double()
    return found


def unit(vector: torch.Tensor) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = (vector / vector.norm()).numpy()
    return found


def reading(
    bench: Bench, tokens: list[int], kind: str = "mean", dimensions: int = WIDTH
) -> Sequence:
    sequence = bench.sequence(tokens)
    sequence.pooling = Pooling(kind, dimensions)
    return sequence


def vector(draw: Any) -> np.ndarray[Any, Any]:
    assert draw is not None
    assert not draw.tokens
    return np.frombuffer(draw.embedding, "<f4")


def embed(runner: ModelRunner, bench: Bench, sequence: Sequence) -> np.ndarray[Any, Any]:
    return vector(runner.execute([bench.prefill(sequence)])[0])


@pytest.mark.parametrize("length", [1, 16, 65, 200])
@pytest.mark.parametrize("kind", ["mean", "last"])
def test_as_the_reference(exact: ModelRunner, oracle: Any, length: int, kind: str) -> None:
    assert exact.info.width == WIDTH
    bench, tokens = Bench(exact), prompt(length, 20)
    got = embed(exact, bench, reading(bench, tokens, kind))
    all_states = states(oracle, tokens)
    want = unit(all_states.mean(0) if kind == "mean" else all_states[-1])
    assert got.shape == (WIDTH,)
    assert abs(np.linalg.norm(got) - 1) < 1e-5
    assert np.abs(got - want).max() < CLOSE


def test_cut_to_dimensions(exact: ModelRunner) -> None:
    bench, tokens = Bench(exact), prompt(20, 21)
    whole = embed(exact, bench, reading(bench, tokens))
    part = embed(exact, bench, reading(bench, tokens, dimensions=64))
    want = whole[:64] / np.linalg.norm(whole[:64])
    assert part.shape == (64,)
    assert np.abs(part - want).max() < 1e-6


def test_among_others(exact: ModelRunner, oracle: Any) -> None:
    """Decodes, prompts that are answered, chunks, and other embeddings in the same step."""
    bench = Bench(exact)
    answered = [bench.sequence(prompt(n, 22)) for n in (5, 70)]
    exact.execute([bench.prefill(s) for s in answered])
    for sequence, token in zip(answered, prompt(2, 23), strict=True):
        sequence.tokens.append(token)
    new, part = bench.sequence(prompt(33, 24)), bench.sequence(prompt(80, 25))
    read = [reading(bench, prompt(n, 26), kind) for n, kind in ((40, "mean"), (9, "last"))]
    begun = reading(bench, prompt(60, 27))
    works = [
        bench.prefill(read[0]),
        bench.decode(answered[0]),
        Work(begun, 0, 31),
        bench.prefill(new),
        Work(part, 0, 50),
        bench.prefill(read[1]),
        bench.decode(answered[1]),
    ]
    draws = exact.execute(works)
    for index, pool in ((0, lambda s: s.mean(0)), (5, lambda s: s[-1])):
        want = unit(pool(states(oracle, works[index].sequence.tokens)))
        assert np.abs(vector(draws[index]) - want).max() < CLOSE
    assert draws[2] is None and draws[4] is None
    for index in (1, 3, 6):
        tokens = works[index].sequence.tokens
        draw = draws[index]
        assert draw is not None and draw.embedding is None
        with torch.inference_mode():
            assert draw.tokens == [int(oracle(torch.tensor([tokens])).logits[0, -1].argmax())]
    rest = vector(exact.execute([bench.prefill(begun, 31)])[0])
    want = unit(states(oracle, begun.tokens).mean(0))
    assert np.abs(rest - want).max() < CLOSE


@pytest.mark.skipif(
    not packs(torch.device("cpu"), torch.bfloat16),
    reason="bfloat16 is not the CPU's default without oneDNN, and takes long",
)
def test_chunks_and_neighbours_change_no_bit(fast: ModelRunner) -> None:
    bench, tokens = Bench(fast), prompt(90, 28)
    alone = embed(fast, bench, reading(bench, tokens))
    crowd = [bench.prefill(bench.sequence(prompt(n, 29))) for n in (5, 40, 170)]
    crowd.insert(1, bench.prefill(reading(bench, tokens)))
    assert np.array_equal(vector(fast.execute(crowd)[1]), alone)
    chunked = reading(bench, tokens)
    for start, end in ((0, 13), (13, 14), (14, 70)):
        assert fast.execute([Work(chunked, start, end - start)]) == [None]
    assert np.array_equal(vector(fast.execute([bench.prefill(chunked, 70)])[0]), alone)


def test_begun_again_after_a_preemption(exact: ModelRunner) -> None:
    bench, tokens = Bench(exact), prompt(50, 30)
    want = embed(exact, bench, reading(bench, tokens))
    sequence = reading(bench, tokens)
    exact.execute([Work(sequence, 0, 20)])
    assert np.abs(embed(exact, bench, sequence) - want).max() < 1e-6


def test_a_forgotten_request_leaves_nothing(exact: ModelRunner) -> None:
    bench = Bench(exact)
    sequence = reading(bench, prompt(50, 31))
    exact.execute([Work(sequence, 0, 20)])
    assert exact._pooler._sums
    exact.release(sequence.request)
    assert not exact._pooler._sums
    assert sequence.params == GREEDY


# --------------------------------------------------------------------------------- a core


@pytest.fixture
def pair() -> Iterator[Channel]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(theirs)


def read(core: Core, **fields: Any) -> Output | Failed:
    """What becomes of a prompt that is only read."""
    embed = Embedding(dimensions=fields.pop("dimensions", None))
    core._take(Add(request="r", params=GREEDY, embed=embed, **fields))
    frames: list[Any] = list(core._out)
    while core.scheduler.busy:
        core._step()
        frames += core._out
    core._out = []
    for frame in frames:
        if isinstance(frame, Failed):
            return frame
    (output,) = [o for frame in frames if isinstance(frame, Step) for o in frame.outputs]
    return output


@pytest.mark.parametrize("kind", ["mean", "last"])
def test_a_core_pools_as_it_is_told(exact: ModelRunner, pair: Channel, kind: str) -> None:
    core = Core(CoreConfig(model="", pooling=kind, max_tokens_per_step=16), exact, pair)
    assert core.ready().pooling == kind
    bench, tokens = Bench(exact), prompt(50, 32)
    want = embed(exact, bench, reading(bench, tokens, kind))
    for _ in range(2):  # the second time blocks of the first may be there
        output = read(core, prompt=tokens)
        assert isinstance(output, Output)
        assert (output.tokens, output.text, output.reason) == ([], "", "stop")
        assert np.abs(np.frombuffer(output.embedding or b"", "<f4") - want).max() < CLOSE
    assert not core._texts and not exact._pooler._sums
    output = read(core, text="A cat.", dimensions=7)
    assert isinstance(output, Output)
    assert len(output.embedding or b"") == 28
    refused = read(core, text="A cat.", dimensions=577)
    assert isinstance(refused, Failed)
    assert (refused.code, refused.message) == ("invalid", "dimensions: must be 1 to 576, not 577")


def test_a_core_that_makes_none_says_so(
    exact: ModelRunner, pair: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Core(CoreConfig(model="", pooling="off"), exact, pair)
    refused = read(core, text="A cat.")
    assert isinstance(refused, Failed)
    assert "engine.pooling is off" in refused.message
    monkeypatch.setattr(exact, "info", msgspec.structs.replace(exact.info, width=0))
    core = Core(CoreConfig(model=""), exact, pair)
    assert core.ready().pooling == "off"
    refused = read(core, text="A cat.")
    assert isinstance(refused, Failed)
    assert refused.message == "model: this engine makes no embeddings: its architecture cannot"

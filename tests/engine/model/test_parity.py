"""Numbers and texts beside transformers, on the same dequantized weights.

In float32 logits must agree to rounding; in bfloat16 the engine's own promise is tested: bit for
bit the same row, however the work is cut and whatever runs beside it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from app.engine.models.linear import packs
from app.engine.runner import ModelRunner
from app.engine.sequence import Work
from app.events.catalogue import ChatMessage
from tests.engine.model.steps import Bench, prompt

pytestmark = pytest.mark.model

CLOSE = 2e-3  # logits reach 25; the sums run in other orders
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about rain.",
    "def fib(n):  # finish this",
    "Wie geht es dir?  🙂",
]


@torch.inference_mode()
def expected(oracle: Any, tokens: list[int]) -> torch.Tensor:
    """Logits of the reference for every position."""
    logits: torch.Tensor = oracle(torch.tensor([tokens])).logits[0].float()
    return logits


@pytest.mark.parametrize("length", [1, 2, 16, 17, 65, 200])
def test_prefill(exact: ModelRunner, oracle: Any, length: int) -> None:
    bench = Bench(exact)
    tokens = prompt(length)
    got = exact.logits([bench.prefill(bench.sequence(tokens))])
    assert torch.allclose(got[0], expected(oracle, tokens)[-1], atol=CLOSE, rtol=0)


def test_decode_token_by_token(exact: ModelRunner, oracle: Any) -> None:
    bench = Bench(exact)
    tokens = prompt(40, 1)
    want = expected(oracle, tokens)
    sequence = bench.sequence(tokens[:9])
    got = [exact.logits([bench.prefill(sequence)])[0]]
    for token in tokens[9:]:
        sequence.tokens.append(token)
        got.append(exact.logits([bench.decode(sequence)])[0])
    assert torch.allclose(torch.stack(got), want[8:], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("cuts", [[1, 50], [16, 32], [7, 8, 9, 90], [49]])
def test_chunked_prefill(exact: ModelRunner, oracle: Any, cuts: list[int]) -> None:
    bench = Bench(exact)
    tokens = prompt(100, 2)
    sequence = bench.sequence(tokens)
    for start, end in zip([0, *cuts], cuts, strict=False):
        assert exact.execute([Work(sequence, start, end - start)]) == [None]
    got = exact.logits([bench.prefill(sequence, cuts[-1])])
    assert torch.allclose(got[0], expected(oracle, tokens)[-1], atol=CLOSE, rtol=0)


def test_prefix_of_another_sequence(exact: ModelRunner, oracle: Any) -> None:
    """A sequence that shares computed blocks starts in the middle."""
    bench = Bench(exact)
    shared = prompt(48, 3)
    first = bench.sequence(shared + prompt(5, 4))
    exact.execute([bench.prefill(first)])
    tokens = shared + prompt(20, 5)
    second = bench.sequence(tokens)
    second.blocks[:3] = first.blocks[:3]
    got = exact.logits([bench.prefill(second, 48)])
    assert torch.allclose(got[0], expected(oracle, tokens)[-1], atol=CLOSE, rtol=0)


def test_everything_in_one_step(exact: ModelRunner, oracle: Any) -> None:
    """Decodes of unlike lengths, whole prompts, a chunk that samples nothing, in mixed order."""
    bench = Bench(exact)
    prompts = [prompt(n, 6) for n in (150, 3, 31, 60)]
    old = [bench.sequence(p) for p in prompts]
    exact.execute([bench.prefill(s) for s in old])
    for sequence, token in zip(old, prompt(4, 7), strict=True):
        sequence.tokens.append(token)
    new, part = bench.sequence(prompt(33, 8)), bench.sequence(prompt(80, 9))
    works = [bench.decode(s) for s in old]
    works[2:2] = [bench.prefill(new), Work(part, 0, 50)]
    got = exact.logits(works)
    wanted = [w.sequence.tokens for w in works if w.sequence is not part]
    assert len(got) == len(wanted)
    for row, tokens in zip(got, wanted, strict=True):
        assert torch.allclose(row, expected(oracle, tokens)[-1], atol=CLOSE, rtol=0)
    assert [t is None for t in exact.execute(works)] == [w.sequence is part for w in works]


@torch.inference_mode()
def test_greedy_texts(exact: ModelRunner, fast: ModelRunner, oracle: Any) -> None:
    """Texts of chat prompts equal the reference's in float32, and here in bfloat16 as well."""
    count = 24
    ids = [exact.template.encode([ChatMessage(role="user", content=q)]) for q in QUESTIONS]
    want = []
    for tokens in ids:
        out = oracle.generate(
            torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=count,
        )
        want.append(out[0, len(tokens) :].tolist())
    bench = Bench(exact)
    eos = exact.info.eos[0]
    got = bench.generate([bench.sequence(t) for t in ids], count)
    assert [_until(g, eos) for g in got] == [_until(w, eos) for w in want]
    bench = Bench(fast)
    got = bench.generate([bench.sequence(ids[0])], count)
    assert _until(got[0], eos) == _until(want[0], eos)
    assert "Paris" in fast.tokenizer.decode(got[0])


def _until(tokens: list[int], eos: int) -> list[int]:
    # driven by hand, the engine goes on after the end: compare up to there
    return tokens[: tokens.index(eos)] if eos in tokens else tokens


# ---------------------------------------------------------------------- the same, bit for bit


def test_bfloat16_is_near(fast: ModelRunner, oracle: Any) -> None:
    bench = Bench(fast)
    tokens = prompt(64, 10)
    got = fast.logits([bench.prefill(bench.sequence(tokens))])[0]
    want = expected(oracle, tokens)[-1]
    assert torch.nn.functional.cosine_similarity(got, want, dim=0) > 0.999
    assert (got - want).abs().max() < 1.0


same_rows = pytest.mark.skipif(
    not packs(torch.device("cpu"), torch.bfloat16),
    reason="bfloat16 is not the CPU's default without oneDNN, and takes minutes",
)


@same_rows
def test_batch_and_chunks_change_no_bit(fast: ModelRunner) -> None:
    bench = Bench(fast)
    tokens = prompt(90, 11)
    alone = fast.logits([bench.prefill(bench.sequence(tokens))])[0]

    crowd = [bench.sequence(prompt(n, 12)) for n in (5, 40, 170, 90, 1)]
    works = [bench.prefill(s) for s in crowd]
    works.insert(2, bench.prefill(bench.sequence(tokens)))
    assert torch.equal(fast.logits(works)[2], alone)

    chunked = bench.sequence(tokens)
    for start, end in ((0, 13), (13, 14), (14, 70)):
        fast.execute([Work(chunked, start, end - start)])
    assert torch.equal(fast.logits([bench.prefill(chunked, 70)])[0], alone)

    stepped = bench.sequence(tokens[:80])
    fast.execute([bench.prefill(stepped)])
    others = [bench.sequence(prompt(n, 13)) for n in (20, 300)]
    fast.execute([bench.prefill(s) for s in others])
    for token in tokens[80:]:
        stepped.tokens.append(token)
        for other in others:
            other.tokens.append(token)
        last = fast.logits([bench.decode(s) for s in (others[0], stepped, others[1])])[1]
    assert torch.equal(last, alone)


@same_rows
def test_recomputing_goes_on_as_before(fast: ModelRunner) -> None:
    """A crash or preemption half way, in other blocks, among other neighbours."""
    bench = Bench(fast)
    crowd = [bench.sequence(prompt(n, 14)) for n in (30, 64, 7)]
    whole = bench.generate(crowd, 30)
    again = bench.sequence(crowd[0].tokens[: 30 + 11])
    assert again.tokens[30:] == whole[0][:11]
    rest = bench.generate([again, bench.sequence(prompt(50, 15))], 19)[0]
    assert rest == whole[0][11:]

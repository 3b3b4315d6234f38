"""The sampler beside a plain reference, one row and one token at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.logprobs import logprobs
from app.engine.philox import philox, uniform
from app.engine.sampler import Sampler
from app.engine.sampling import SamplingParams
from app.engine.sequence import Sequence

EOS = (0, 3)


def sequence(
    params: SamplingParams, prompt: list[int], output: list[int], request: str = "r"
) -> Sequence:
    return Sequence(request, prompt, params, output=output)


def reference(logits: np.ndarray[Any, Any], s: Sequence) -> tuple[np.ndarray[Any, Any], int]:
    """Probabilities and the drawn token, straight from the definitions."""
    p, output = s.params, s.tokens[s.prompt_len :]
    scores = logits.astype(np.float64)
    for token in set(s.tokens):
        scores[token] *= p.repetition_penalty if scores[token] <= 0 else 1 / p.repetition_penalty
    for token, count in Counter(output).items():
        scores[token] -= p.presence_penalty + p.frequency_penalty * count
    for token, bias in p.logit_bias.items():
        scores[token] += bias
    if len(output) < p.min_tokens:
        scores[[*EOS, *p.stop_token_ids]] = -math.inf
    if p.temperature == 0:
        return np.eye(len(scores))[scores.argmax()], int(scores.argmax())
    weights = np.exp((scores - scores.max()) / p.temperature)
    keep = np.ones(len(scores), bool)
    if 0 < p.top_k < len(scores):
        keep &= weights >= np.sort(weights)[-p.top_k]
    if p.top_p < 1:
        left = np.where(keep, weights, 0)
        ordered = np.sort(left)[::-1]
        last = np.searchsorted(ordered.cumsum(), p.top_p * left.sum())
        keep &= weights >= ordered[last]
    keep &= weights >= p.min_p
    weights = np.where(keep, weights, 0) / weights[keep].sum()
    number = uniform([p.seed or 0], [len(s.tokens)])[0]
    return weights, int(np.searchsorted(weights.cumsum(), number, side="right"))


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.03, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 40, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, -0.4]),
    min_tokens=st.sampled_from([0, 4]),
    stop_token_ids=st.sampled_from([(), (7, 9)]),
    logit_bias=st.sampled_from([{}, {0: 5.0, 8: -100.0, 299: 2.5}]),
    seed=st.integers(0, 2**63 - 1),
)
TOKENS = st.lists(st.integers(0, 299), max_size=12)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(PARAMS, TOKENS, TOKENS), min_size=1, max_size=6), st.integers(0, 99))
def test_equals_the_reference(rows: list[tuple[Any, list[int], list[int]]], seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (len(rows), 300)).astype(np.float32)
    sequences = [sequence(p, [1, *a], b, f"r{i}") for i, (p, a, b) in enumerate(rows)]
    before = torch.from_numpy(logits.copy())
    got = Sampler(EOS).sample(before, sequences)
    assert torch.equal(before, torch.from_numpy(logits))  # left as they were
    for row, s, token in zip(logits, sequences, got, strict=True):
        weights, wanted = reference(row, s)
        if token != wanted:  # only where rounding decides at an edge of the distribution
            number = uniform([s.params.seed or 0], [len(s.tokens)])[0]
            edges = weights.cumsum()
            assert weights[token] > 0 and np.abs(edges - number).min() < 1e-5


@settings(max_examples=40, deadline=None)
@given(st.lists(PARAMS, min_size=2, max_size=8), st.integers(0, 99))
def test_neighbours_change_nothing(params: list[SamplingParams], seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    # coarse values: many equal logits
    logits = (torch.randn(len(params), 3000, generator=random) * 4).round().bfloat16()
    sequences = [sequence(p, [5, 6], [7, 7, 8], f"r{i}") for i, p in enumerate(params)]
    together = Sampler(EOS).sample(logits, sequences)
    alone = [
        Sampler(EOS).sample(logits[i : i + 1], sequences[i : i + 1])[0] for i in range(len(params))
    ]
    back = Sampler(EOS).sample(logits.flip(0), sequences[::-1])[::-1]
    assert together == alone == back


def test_a_wide_vocabulary_needs_more_than_the_first_candidates() -> None:
    """Flat distributions: top-k and top-p beyond what is sorted at first; ties at the border."""
    logits = torch.zeros(3, 5000)
    logits[0] = torch.linspace(0, 1, 5000)
    params = [
        SamplingParams(temperature=1.0, top_p=0.99, seed=1),
        SamplingParams(temperature=1.0, top_k=2000, seed=2),
        SamplingParams(temperature=1.0, top_k=3, top_p=0.5, seed=3),
    ]
    drawn: list[set[int]] = [set(), set(), set()]
    for n in range(300):
        sequences = [sequence(p, [1] * (n + 1), [], f"r{i}") for i, p in enumerate(params)]
        for row, token in zip(drawn, Sampler(EOS).sample(logits, sequences), strict=True):
            row.add(token)
    assert min(drawn[0]) > 20  # the least probable hundredth is cut off
    assert len(drawn[1]) > 200 and len(drawn[2]) > 200  # ties stay together


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 5e-324])
@pytest.mark.parametrize("extra", [{}, {"top_k": 3, "top_p": 0.9, "min_p": 0.1}])
def test_the_coldest_draw_is_the_most_probable_token(
    temperature: float, extra: dict[str, Any]
) -> None:
    """However small: 32 bits have no such number, and scores divided by it are infinite."""
    logits = torch.tensor([[1.0, 40.0, 39.0, -5.0], [-9.0, -8.0, -9.0, -9.0]])
    params = SamplingParams(temperature=temperature, seed=1, **extra)
    sequences = [sequence(params, [1], [], f"r{i}") for i in range(2)]
    assert Sampler(EOS).sample(logits, sequences) == [1, 1]


@pytest.mark.parametrize("extra", [{}, {"top_k": 2}, {"top_p": 0.5}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_end_comes_too_early_only_where_nothing_else_is_left(
    temperature: float, extra: dict[str, Any]
) -> None:
    def ends_only(row: torch.Tensor) -> None:  # as a plugin may want it
        row[[1, 2]] = -torch.inf

    asked = {"temperature": temperature, "seed": 1, "min_tokens": 3, **extra}
    params = [
        SamplingParams(stop_token_ids=(1, 2, 9), **asked),
        SamplingParams(**asked),
        SamplingParams(stop_token_ids=(1,), **asked),
    ]
    sequences = [sequence(p, [1], [], f"r{i}") for i, p in enumerate(params)]
    logits = torch.tensor([[9.0, 8.0, -3.0, 9.0]] * 3)
    tokens = Sampler(EOS).sample(logits, sequences, {1: ends_only})
    assert set(tokens[:2]) <= {0, 1, 3} and tokens[1:] in ([0, 2], [3, 2])


def test_distribution_chi_square() -> None:
    """20,000 draws at consecutive positions follow the softmax."""
    p = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    logits = torch.from_numpy(np.log(p)).float()
    params = SamplingParams(temperature=1.0, seed=1234)
    count, size = Counter[int](), 1000
    for first in range(0, 20 * size, size):
        sequences = [sequence(params, [1] * (first + i + 1), []) for i in range(size)]
        count.update(Sampler(()).sample(logits.expand(size, -1), sequences))
    observed = np.array([count[i] for i in range(6)])
    expected = p * 20 * size
    assert ((observed - expected) ** 2 / expected).sum() < 20.5  # 0.1 % of chi-square(5)


def test_numbers_are_uniform_and_unlike() -> None:
    seeds = uniform(list(range(20_000)), [7] * 20_000)
    positions = uniform([7] * 20_000, list(range(20_000)))
    for numbers in (seeds, positions):
        counts, _ = np.histogram(numbers, 50, (0, 1))
        assert ((counts - 400) ** 2 / 400).sum() < 85.4  # 0.1 % of chi-square(49)
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.03
    assert abs(np.corrcoef(seeds, positions)[0, 1]) < 0.03
    assert min(seeds) >= 0 and max(seeds) < 1


@pytest.mark.parametrize(
    "counter, key, words",
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            [0xFFFFFFFF] * 2,
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: list[int], words: list[int]) -> None:
    """Vectors that its authors published with Random123."""
    got = philox(np.array([counter], np.uint64), np.array([key], np.uint64))
    assert got[0].tolist() == words


def test_counts_follow_a_sequence_and_are_forgotten() -> None:
    sampler = Sampler(EOS)
    params = SamplingParams(presence_penalty=2.0, frequency_penalty=2.0)
    logits = torch.zeros(1, 100)
    s = sequence(params, list(range(90)), [])
    for _ in range(10):  # each step takes another token, as all before are penalized
        s.tokens += sampler.sample(logits, [s])
    assert sorted(s.tokens[90:]) == sorted(set(s.tokens[90:]))
    del s.tokens[92:]  # recomputed from an earlier point
    again = list(s.tokens)
    for _ in range(8):
        again_token = sampler.sample(logits, [s])
        s.tokens += again_token
    assert s.tokens[:92] == again and len(set(s.tokens[90:])) == 10
    sampler.release("r")
    assert sampler.sample(logits, [sequence(params, [1], [])]) == [0]


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.zeros(5, 49152, dtype=torch.bfloat16)
    logits[1, [9, 40000]] = 2.0
    logits[2, 49151] = 1.0
    sequences = [sequence(SamplingParams(), [1], [], f"r{i}") for i in range(5)]
    assert Sampler(EOS).sample(logits, sequences) == [0, 9, 49151, 0, 0]


# ------------------------------------------------------------------- bias, hooks, log probabilities


def test_a_bias_bans_and_forces_behind_the_penalties() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 4)
    params = [
        SamplingParams(logit_bias={0: -100.0}),
        SamplingParams(logit_bias={3: 100.0}),
        SamplingParams(logit_bias={1: 1.5}, repetition_penalty=2.0),  # 2 / 2 + 1.5 < 3
        SamplingParams(),
    ]
    sequences = [sequence(p, [1], [], f"r{i}") for i, p in enumerate(params)]
    assert Sampler(()).sample(logits, sequences) == [1, 3, 0, 0]


def test_a_bias_follows_its_distribution() -> None:
    logits, bias = torch.zeros(4), {1: math.log(2.0), 2: math.log(3.0)}
    params = SamplingParams(temperature=1.0, logit_bias=bias, seed=5)
    sequences = [sequence(params, [1] * (i + 1), [], f"r{i}") for i in range(3500)]
    count = Counter(Sampler(()).sample(logits.expand(3500, -1), sequences))
    expected = np.array([500.0, 1000.0, 1500.0, 500.0])
    observed = np.array([count[i] for i in range(4)])
    assert ((observed - expected) ** 2 / expected).sum() < 16.3  # 0.1 % of chi-square(3)


@pytest.mark.parametrize("extra", [{}, {"top_k": 300}, {"top_p": 0.9}, {"min_p": 0.01}])
def test_what_a_hook_masks_is_never_drawn_and_the_rest_keeps_its_odds(
    extra: dict[str, Any],
) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 1, 2000)).float()
    allowed = torch.zeros(2000, dtype=torch.bool)
    allowed[[7, 500, 1999]] = True
    params = SamplingParams(temperature=1.0, seed=3, **extra)
    size = 3000
    sequences = [sequence(params, [1] * (i + 1), [], f"r{i}") for i in range(size)]
    hooks = {i: lambda row: row.masked_fill_(~allowed, -math.inf) for i in range(size)}
    count = Counter(Sampler(()).sample(logits.expand(size, -1), sequences, hooks))
    assert set(count) <= {7, 500, 1999}
    expected = torch.softmax(logits[allowed], 0).numpy() * size
    observed = np.array([count[7], count[500], count[1999]])
    if "top_p" not in extra:
        assert ((observed - expected) ** 2 / expected).sum() < 13.8  # 0.1 % of chi-square(2)


def test_hooks_reach_their_rows_whatever_stands_beside_them() -> None:
    logits = torch.zeros(4, 50)
    params = [SamplingParams(), SamplingParams(temperature=0.5, seed=1), *[SamplingParams()] * 2]
    sequences = [sequence(p, [1], [], f"r{i}") for i, p in enumerate(params)]

    def only(token: int) -> Callable[[torch.Tensor], None]:
        def hook(row: torch.Tensor) -> None:
            row[token] += 1000

        return hook

    tokens = Sampler(()).sample(logits, sequences, {1: only(11), 3: only(33)})
    assert tokens == [0, 11, 0, 33]
    assert not logits.any()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 399), st.integers(0, 20)), min_size=1, max_size=70),
    st.integers(0, 99),
)
def test_logprobs_equal_the_reference(places: list[tuple[int, int]], seed: int) -> None:
    # coarse values: many equal logits
    logits = np.random.default_rng(seed).normal(0, 4, (len(places), 400)).round()
    tokens, tops = [t for t, _ in places], [n for _, n in places]
    found = logprobs(torch.from_numpy(logits).bfloat16(), tokens, tops)
    for row, token, count, one in zip(logits, tokens, tops, found, strict=True):
        values = row - row.max() - np.log(np.exp(row - row.max()).sum())
        wanted = sorted(range(400), key=lambda i, v=values: (-v[i], i))[:count]
        assert one.logprob == pytest.approx(values[token], abs=1e-5)
        assert [i for i, _ in one.top] == wanted
        assert [v for _, v in one.top] == pytest.approx(values[wanted], abs=1e-5)


def test_logprobs_do_not_depend_on_their_neighbours() -> None:
    logits = torch.randn(40, 49152, generator=torch.Generator().manual_seed(1)) * 5
    together = logprobs(logits, list(range(40)), [5] * 40)
    alone = [logprobs(logits[i : i + 1], [i], [5])[0] for i in range(40)]
    assert together == alone

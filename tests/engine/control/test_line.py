"""Who goes first: priorities that take places, tenants that share, prompts computed once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.blocks import BlockManager
from app.engine.frames import Preempted, Started
from app.engine.sampling import SamplingParams
from app.engine.scheduler import Scheduler
from app.engine.sequence import Sequence, State
from app.engine.waiting import CREDIT, OUTPUT_COST, Waiting
from tests.engine.control.test_scheduler import SIZE, Run, alone, make, request


def told(scheduler: Scheduler) -> dict[str, list[str]]:
    """What each that started now waited for."""
    return {n.request: n.waited_for for n in scheduler.notices if isinstance(n, Started)}


# -------------------------------------------------------------------------------- priority


def test_a_higher_priority_takes_the_place_of_the_lowest_in_a_full_batch() -> None:
    scheduler = make(policy="priority", max_batch=2)
    run = Run(scheduler)
    for name, priority in (("a", 1), ("b", 0)):
        scheduler.add(request(name, priority=priority, max_tokens=20))
    run.step()
    run.step()
    scheduler.add(request("c", priority=5, max_tokens=2))
    works = scheduler.schedule(run.now)
    (gone,) = [n for n in scheduler.notices if isinstance(n, Preempted)]
    assert gone.request == "b"
    assert gone.reason == "a request of priority 5 takes its place in the batch of 2"
    assert told(scheduler) == {"c": []}
    assert sorted(w.sequence.request for w in works) == ["a", "c"]
    run.notices()
    scheduler.commit(works, run.cache.execute(works))
    run.finish()
    assert list(run.reasons) == ["c", "a", "b"]
    assert (
        run.outputs["b"]
        == alone([ord("b") % 40 + 1] * 5, request("b", max_tokens=20).params, 100)[0]
    )


def test_a_higher_priority_takes_blocks_and_what_was_computed_is_found_again() -> None:
    scheduler = make(num_blocks=12, policy="priority", context=40)
    run = Run(scheduler)
    scheduler.add(request("a", 20, max_tokens=4))
    scheduler.add(request("b", 16, max_tokens=4, priority=0, arrival=1.0))
    run.step()
    scheduler.add(request("c", 8, priority=1, max_tokens=1))
    run.step()
    assert run.log[-2:] == ["Preempted b", "Started c"]
    run.finish()
    assert "Resumed b" in run.log
    assert run.reasons.keys() == {"a", "b", "c"}


def test_nobody_gives_way_if_it_would_not_be_enough() -> None:
    scheduler = make(num_blocks=12, policy="priority", context=48)
    run = Run(scheduler)
    scheduler.add(request("a", 32, max_tokens=8, priority=9))
    scheduler.add(request("b", 4, max_tokens=8))
    run.step()
    scheduler.add(request("c", 40, max_tokens=1, priority=1))
    run.step()
    assert not any(line.startswith("Preempted") for line in run.log)
    run.finish()
    assert list(run.reasons) == ["a", "c", "b"]  # then it was


def test_equals_do_not_give_way() -> None:
    scheduler = make(policy="priority", max_batch=1)
    run = Run(scheduler)
    scheduler.add(request("a", priority=3))
    run.step()
    scheduler.add(request("b", priority=3))
    run.finish()
    assert not any(line.startswith("Preempted") for line in run.log)


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.lists(st.integers(0, 3), min_size=2, max_size=12),
    max_batch=st.integers(1, 3),
    gap=st.integers(1, 3),
)
def test_in_no_step_does_a_lower_priority_run_while_a_higher_one_waits(
    ranks: list[int], max_batch: int, gap: int
) -> None:
    scheduler = make(num_blocks=40, policy="priority", max_batch=max_batch)
    run = Run(scheduler)
    for index, priority in enumerate(ranks):
        scheduler.add(
            Sequence(f"{index}", [index + 1] * 5, SamplingParams(max_tokens=6), priority=priority)
        )
        for _ in range(gap):
            works = run.step()
            waiting = [s for s in scheduler.sequences.values() if s.state is not State.RUNNING]
            lowest = min((w.sequence.priority for w in works), default=9)
            assert all(s.priority <= lowest for s in waiting)
    run.finish()


# ---------------------------------------------------------------------------------- shares


def backlog(scheduler: Scheduler, tenant: str, index: int, prompt: int, output: int) -> None:
    """Another request of a tenant, unlike all others."""
    tokens = [1 + ord(tenant), index, *range(1, prompt - 1)]
    params = SamplingParams(max_tokens=output, ignore_eos=True)
    scheduler.add(Sequence(f"{tenant}{index}", tokens, params, tenant=tenant, arrival=float(index)))


def test_one_request_does_not_wait_behind_a_thousand_of_another_tenant() -> None:
    scheduler = make(max_batch=2)
    run = Run(scheduler)
    for index in range(100):
        backlog(scheduler, "a", index, 4, 4)
    run.step()
    backlog(scheduler, "b", 1000, 4, 4)
    while "b1000" not in run.reasons:
        run.step()
    assert len(run.reasons) <= 4 + 1
    assert "share" in dict(started(run, scheduler)).get("a3", [])


def started(run: Run, scheduler: Scheduler) -> list[tuple[str, list[str]]]:
    """Run to the end; who started from now on, and what each waited for."""
    found: list[tuple[str, list[str]]] = []
    while scheduler.busy:
        works = scheduler.schedule(run.now)
        found += told(scheduler).items()
        run.notices()
        scheduler.commit(works, run.cache.execute(works))
    return found


def test_without_shares_it_is_first_come_first_served() -> None:
    scheduler = make(max_batch=1, fair=False)
    run = Run(scheduler)
    for index in range(6):
        backlog(scheduler, "a", index, 4, 2)
    backlog(scheduler, "b", 6, 4, 2)
    run.finish()
    assert list(run.reasons)[-1] == "b6"


shapes = st.tuples(st.integers(2, 12), st.integers(1, 12))


@settings(max_examples=60, deadline=None)
@given(
    heavy=shapes,
    light=shapes,
    max_batch=st.integers(1, 6),
    depth=st.tuples(st.integers(1, 3), st.integers(1, 12)),
)
def test_two_tenants_that_always_wait_get_the_same(
    heavy: tuple[int, int], light: tuple[int, int], max_batch: int, depth: tuple[int, int]
) -> None:
    """The bound of the VTC paper: twice the cost of all tokens that fit into a batch."""
    scheduler = make(num_blocks=200, max_batch=max_batch, context=40)
    run = Run(scheduler)
    got: Counter[str] = Counter()
    index = 0
    for _ in range(150):
        for tenant, shape, most in (("a", heavy, depth[0]), ("b", light, depth[1])):
            waiting = [
                s
                for s in scheduler.sequences.values()
                if s.tenant == tenant and s.state is not State.RUNNING
            ]
            for _ in range(max_batch + most - len(waiting)):  # more than can begin at once
                index += 1
                backlog(scheduler, tenant, index, *shape)
        before = {s.request: (s.computed, len(s.tokens)) for s in scheduler.sequences.values()}
        for work in run.step():
            seq = work.sequence
            computed, tokens = before[seq.request]
            got[seq.tenant] += min(work.length, max(0, seq.prompt_len - computed))
            got[seq.tenant] += OUTPUT_COST * (len(seq.tokens) - tokens)
        full = max_batch * max(sum(heavy), sum(light))
        assert abs(got["a"] - got["b"]) <= 2 * OUTPUT_COST * full


def test_who_was_away_saves_nothing_up() -> None:
    line = Waiting()
    for index in range(3):
        line.join((0, float(index), index), request("a", tenant="a"))
    line.charge("a", 10 * CREDIT)
    line.join((0, 9.0, 9), request("b", tenant="b"))
    assert line.got("b") == 10 * CREDIT
    gone = []
    while (entry := line.first()) is not None:
        line.take(*entry)
        gone.append(entry[1].tenant)
    assert gone == ["a", "a", "a", "b"]
    line.charge("b", 2 * CREDIT)
    line.join((0, 10.0, 10), request("c", tenant="c"))
    assert line.got("c") == 12 * CREDIT  # nobody waits: it starts where the last one is
    line.join((0, 11.0, 11), request("a", tenant="a"))
    assert line.got("a") == 11 * CREDIT


# ------------------------------------------------------------------------- prompts computed once


@pytest.mark.parametrize("length", [9, 40, 41, 64])
def test_siblings_compute_their_prompt_once(length: int) -> None:
    scheduler = make(num_blocks=200, max_tokens=16)
    run = Run(scheduler)
    prompt = [(7 * index) % 40 + 1 for index in range(length)]
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    for index in range(8):
        scheduler.add(Sequence(str(index), list(prompt), params))
    computed = 0
    reasons: dict[str, list[str]] = {}
    while scheduler.busy:
        works = scheduler.schedule(run.now)
        computed += sum(min(w.length, max(0, length - w.start)) for w in works)
        reasons |= told(scheduler)
        run.notices()
        for result in scheduler.commit(works, run.cache.execute(works)):
            run.outputs.setdefault(result.sequence.request, []).extend(result.tokens)
    assert computed <= length + 7 * SIZE
    assert reasons["0"] == []
    assert reasons["7"][0] == "prefix"
    assert {tuple(tokens) for tokens in run.outputs.values()} == {
        tuple(alone(prompt, params, 100)[0])
    }


def test_nobody_waits_for_a_prefix_that_is_no_great_part_of_its_prompt() -> None:
    scheduler = make(num_blocks=200)
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    scheduler.add(Sequence("a", [1] * 8 + [2] * 30, params))
    scheduler.add(Sequence("b", [1] * 8 + [3] * 30, params))
    scheduler.add(Sequence("c", [1] * 8 + [2] * 30, params, salt="other"))
    works = scheduler.schedule(0.0)
    assert [w.sequence.request for w in works] == ["a", "b", "c"]


def test_who_waits_for_a_prefix_goes_on_alone_when_its_computer_is_gone() -> None:
    run = Run(make(num_blocks=200, max_tokens=8))
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    for name in "ab":
        run.scheduler.add(Sequence(name, [5] * 30, params))
    run.step()
    assert [s.request for s in run.scheduler.running] == ["a"]
    run.scheduler.end("a")
    run.step()
    assert [s.request for s in run.scheduler.running] == ["b"]
    assert run.scheduler.running[0].cached == 8
    run.finish()


def test_without_a_prefix_cache_nobody_waits_for_a_prefix() -> None:
    scheduler = Scheduler(BlockManager(64, SIZE, prefix_cache=False), context=100)
    for name in "ab":
        scheduler.add(Sequence(name, [5] * 30, SamplingParams(max_tokens=3)))
    assert len(scheduler.schedule(0.0)) == 2


# --------------------------------------------------------------------------------- reasons


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_batch": 1}, "batch"),
        ({"max_tokens": 5}, "tokens"),
        ({"num_blocks": 4, "context": 16}, "blocks"),
    ],
)
def test_it_is_told_what_a_request_waited_for(limits: dict[str, Any], reason: str) -> None:
    scheduler = make(**limits)
    run = Run(scheduler)
    scheduler.add(request("a", 10, max_tokens=3))
    scheduler.add(request("b", 4, max_tokens=1))
    assert dict(started(run, scheduler)) == {"a": [], "b": [reason]}


def test_it_is_told_who_was_overtaken() -> None:
    scheduler = make(max_batch=1, policy="priority")
    run = Run(scheduler)
    for name, priority in (("a", 5), ("b", 0)):
        scheduler.add(request(name, priority=priority, max_tokens=3))
    run.step()
    scheduler.add(request("c", priority=3, max_tokens=3))
    found = dict(started(run, scheduler))
    assert found == {"c": ["batch"], "b": ["batch", "priority"]}

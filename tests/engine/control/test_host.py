"""A host on a log in memory, with the real model: what becomes of requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.config import EngineConfig
from app.engine.host import EngineHost
from app.errors import StartupError
from app.events import codec
from app.events.catalogue import ChatMessage, RequestStarted, Structured
from app.events.memory import MemoryStore
from tests.engine.control.lab import STORY, Lab, gone, serving

FRANCE = "What is the capital of France?"
BLOCK = 30 * 2 * 3 * 64 * 16 * 2
"""Bytes of a KV block of the default model in bfloat16."""


@pytest.fixture(scope="module")
async def lab(model_path: Path) -> AsyncIterator[Lab]:
    async with (
        MemoryStore() as store,
        serving(store, str(model_path), max_context=512, kv_memory=256 << 20) as lab,
    ):
        yield lab


async def test_an_answer_is_events(lab: Lab) -> None:
    result = await lab.answer(FRANCE)
    assert result.types[:4] == [
        "request.queued",
        "request.claimed",
        "request.started",
        "tokens.generated",
    ]
    assert len(result.batches[0].tokens) == 1, "the first token goes at once"
    finished = result.finished
    assert (finished.reason, finished.text) == ("stop", "The capital of France is Paris.")
    assert finished.usage.prompt_tokens == 37
    assert finished.timings.prefill_ms > 0
    assert {event.run for event in result.events} == {"run-1"}
    assert {event.actor for event in result.events[2:]} == {"engine:w1"}
    assert {event.cause for event in result.events[2:]} == {str(result.events[0].seq)}
    assert lab.host is not None
    assert lab.host.state == "ready"
    assert lab.host.model is not None
    started = codec.decode(result.events[2])
    assert isinstance(started, RequestStarted)
    assert started.weights == lab.host.model.weights


async def test_log_probabilities_and_forms_are_in_the_log(lab: Lab) -> None:
    scored = await lab.answer(FRANCE, logprobs=2, prompt_logprobs=1, temperature=0.7)
    assert [len(b.logprobs) for b in scored.batches] == [len(b.tokens) for b in scored.batches]
    assert len(scored.batches[0].prompt_logprobs) == scored.finished.usage.prompt_tokens
    assert not any(batch.prompt_logprobs for batch in scored.batches[1:])
    form = Structured(
        json_schema={
            "type": "object",
            "properties": {"city": {"const": "Paris"}},
            "required": ["city"],
            "additionalProperties": False,
        }
    )
    made = await lab.answer(FRANCE, structured=form)
    assert (made.finished.text, made.finished.reason) == ('{"city": "Paris"}', "stop")
    assert not any(batch.logprobs for batch in made.batches)


async def test_a_known_prefix_is_not_computed_again(lab: Lab) -> None:
    first = await lab.answer("Count to three. " * 5, max_tokens=2)
    second = await lab.answer("Count to three. " * 5, max_tokens=2)
    assert second.finished.usage.cached_tokens >= 32
    assert second.tokens == first.tokens


async def test_a_batch_gives_what_each_gives_alone(lab: Lab) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": FRANCE},
        {"prompt": STORY, "temperature": 0.9, "seed": 11},
        {"prompt": STORY, "temperature": 0.9, "seed": 12},
        {"prompt": "Write a haiku about rain.", "temperature": 0.7, "top_p": 0.9},
    ]
    alone = [await lab.answer(**kwargs) for kwargs in asked]
    together = await lab.answers(*asked)
    assert [r.tokens for r in together] == [r.tokens for r in alone]
    assert [r.text for r in together] == [r.text for r in alone]
    assert alone[1].tokens != alone[2].tokens


@pytest.mark.parametrize(
    ("stop", "text"),
    [(("is Par",), "The capital of France "), (("ris",), "The capital of France is Pa")],
)
async def test_stop_strings_across_token_boundaries(lab: Lab, stop: tuple[str], text: str) -> None:
    result = await lab.answer(FRANCE, stop=stop)
    assert (result.finished.reason, result.text) == ("stop", text)


@pytest.mark.parametrize(
    ("kwargs", "code", "words"),
    [
        ({"temperature": -1.0}, "invalid", "params.temperature"),
        ({"max_tokens": 0}, "invalid", "params.max_tokens"),
        ({"text": ""}, "invalid", "text"),
        ({"prompt": [10**7]}, "invalid", "prompt"),
        ({"messages": [ChatMessage(role="?!", content="x")]}, "invalid", "messages"),
        ({"prompt": [5] * 600}, "context", "512"),
        ({"stop_token_ids": (2**70,)}, "invalid", "cannot be sent"),
    ],
)
async def test_a_bad_request_fails_and_says_why(
    lab: Lab, kwargs: dict[str, Any], code: str, words: str
) -> None:
    good = await lab.ask(FRANCE)
    failed = (await lab.answer(**kwargs)).failed
    assert failed.code == code
    assert words in failed.message
    assert (await lab.result(good)).finished.reason == "stop"


async def test_a_deadline_ends_a_running_request(lab: Lab) -> None:
    deadline = time.time_ns() + 600_000_000
    result = await lab.answer(deadline=deadline, max_tokens=480, ignore_eos=True)
    assert result.failed.code == "timeout"
    assert result.failed.usage is not None
    assert result.failed.usage.completion_tokens == len(result.tokens)


async def test_a_deadline_ends_a_request_that_nobody_claims(lab: Lab) -> None:
    result = await lab.answer(model="another model", deadline=time.time_ns() + 100_000_000)
    assert result.failed.code == "timeout"
    assert result.types == ["request.queued", "request.failed"]


async def test_a_request_may_name_the_model(lab: Lab) -> None:
    assert lab.host is not None
    assert lab.host.model is not None
    result = await lab.answer(FRANCE, model=lab.host.model.model, max_tokens=1)
    assert result.finished.reason == "length"


async def test_what_is_cancelled_stops_at_once(lab: Lab) -> None:
    request = await lab.ask(ignore_eos=True, max_tokens=480)
    await lab.streaming(request, 3)
    await lab.cancel(request)
    version = await lab.store.stream_version(f"request/{request}")
    assert (await lab.answer(FRANCE)).text == "The capital of France is Paris."
    assert await lab.store.stream_version(f"request/{request}") == version


async def test_more_requests_than_slots_all_end(lab: Lab) -> None:
    requests = [await lab.ask([i + 5, 9, 7], max_tokens=2, ignore_eos=True) for i in range(100)]
    results = await asyncio.gather(*(lab.result(request) for request in requests))
    assert {len(result.tokens) for result in results} == {2}
    assert await lab.store.leases() == []


# ------------------------------------------------------------------- hosts of their own


async def test_few_blocks_change_no_text_and_are_all_given_back(model_path: Path) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": STORY, "max_tokens": 36, "ignore_eos": True, "temperature": t, "seed": 3}
        for t in (0.0, 0.8, 0.9)
    ]
    async with MemoryStore() as store:
        async with serving(store, str(model_path), max_context=128, max_batch=3) as roomy:
            undisturbed = await roomy.answers(*asked)
            assert roomy.host is not None
            assert roomy.host.model is not None
            block = BLOCK if roomy.host.model.dtype == "bfloat16" else 2 * BLOCK
        async with serving(
            store, str(model_path), max_context=128, kv_memory=9 * block, max_batch=3
        ) as tight:
            assert tight.host is not None
            assert tight.host.model is not None
            assert tight.host.model.blocks < 11
            long = await tight.ask(ignore_eos=True, max_tokens=70)
            await tight.streaming(long)
            await tight.cancel(long)
            crowded = await tight.answers(*asked)
    assert [r.tokens for r in crowded] == [r.tokens for r in undisturbed]
    assert [r.text for r in crowded] == [r.text for r in undisturbed]
    preempted = sum(r.types.count("request.preempted") for r in crowded)
    assert preempted >= 1
    assert sum(r.types.count("request.resumed") for r in crowded) == preempted


async def test_drain_gives_back_and_the_next_start_goes_on(model_path: Path) -> None:
    asked: list[dict[str, Any]] = [
        {"max_tokens": 24, "ignore_eos": True, "temperature": t, "seed": 5} for t in (0.0, 0.9)
    ]
    async with MemoryStore() as store:
        async with serving(store, str(model_path), max_context=256) as first:
            undisturbed = await first.answers(*asked)
            requests = [await first.ask(**kwargs) for kwargs in asked]
            for request in requests:
                await first.streaming(request, 5)
            pid = await first.core_pid()
            assert first.host is not None
            await first.host.drain()
            assert first.host.state == "stopped"
            await gone(pid)
        states = {lease.request: lease.state for lease in await store.leases()}
        assert states == dict.fromkeys(requests, "queued")
        async with serving(store, str(model_path), max_context=256) as second:
            resumed = [await second.result(request) for request in requests]
        types = [e.type async for e in store.read(stream="worker/w1")]
    assert [r.text for r in resumed] == [r.text for r in undisturbed]
    assert all(r.types.count("request.abandoned") == 1 for r in resumed)
    assert types == ["worker.started", "worker.drained"] * 2


async def test_a_model_that_is_not_there_is_said_at_the_start(tmp_path: Path) -> None:
    async with MemoryStore() as store:
        host = EngineHost(store, EngineConfig(model=str(tmp_path / "no.gguf")), worker="w1")
        with pytest.raises(StartupError, match=r"no\.gguf"):
            await host.run()
        assert host.state == "failed"


@pytest.mark.parametrize("how", ["cancel", "drain"])
async def test_an_end_before_it_is_ready_leaves_no_process_behind(
    model_path: Path, how: str
) -> None:
    async with MemoryStore() as store:
        host = EngineHost(store, EngineConfig(model=str(model_path)), worker="w1")
        before = children()
        task = asyncio.create_task(host.run())
        async with asyncio.timeout(30):
            while not (started := children() - before):  # noqa: ASYNC110 - of the system
                await asyncio.sleep(0.01)
        if how == "cancel":
            task.cancel()
        else:
            await host.drain()
        await asyncio.wait([task])
        assert host.state == "stopped"
        for pid in started:
            await gone(pid)


def children() -> set[int]:
    """Processes that this one started."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(pid) for file in lists for pid in file.read_text().split()}

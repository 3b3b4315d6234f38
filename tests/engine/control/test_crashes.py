"""Cores and hosts that die in the middle of answers: the log goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.engine.supervisor import Backoff
from app.events import codec
from app.events.catalogue import (
    Embedding,
    RequestAbandoned,
    RequestEmbedded,
    RequestStarted,
    Structured,
    WorkerCrashed,
)
from app.events.envelope import request_stream
from app.events.memory import MemoryStore
from app.events.sqlite import SqliteStore
from app.events.store import Append, EventStore, Fence, Outcome, StoreError
from tests.engine.control.lab import Lab, Result, gone, serving

pytestmark = pytest.mark.crash

ROOT = Path(__file__).parents[3]
ASKED: list[dict[str, Any]] = [
    {"max_tokens": 24, "ignore_eos": True, "temperature": t, "seed": 5, "stop": stop}
    for t, stop in ((0.0, ()), (0.9, ()), (0.9, ("never, ever said",)))
]
ASKED.append({**ASKED[1], "structured": Structured(regex="([a-z]+ ){40}"), "logprobs": 1})
CONFIG: dict[str, Any] = {"max_context": 256, "kv_memory": 128 << 20, "max_tokens_per_step": 32}


@asynccontextmanager
async def sqlite(path: Path) -> AsyncIterator[EventStore]:
    store = await SqliteStore.open(path, synchronous="normal")
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture(scope="module")
async def lab(
    model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Lab, list[Result]]]:
    """A lab, and what is answered when nothing happens."""
    path = tmp_path_factory.mktemp("crashes") / "log.db"
    async with sqlite(path) as store, serving(store, str(model_path), **CONFIG) as lab:
        yield lab, await lab.answers(*ASKED)


def same(results: list[Result], undisturbed: list[Result]) -> None:
    assert [r.tokens for r in results] == [r.tokens for r in undisturbed]
    assert [r.text for r in results] == [r.text for r in undisturbed]
    scores, wanted = (
        [[o for b in r.batches for o in b.logprobs] for r in all] for all in (results, undisturbed)
    )
    for one, other in zip(scores, wanted, strict=True):
        assert [o.logprob for o in one] == pytest.approx([o.logprob for o in other], abs=0.01)
    assert [r.finished.reason for r in results] == [r.finished.reason for r in undisturbed]


async def test_a_killed_core_changes_no_vector(lab: tuple[Lab, list[Result]]) -> None:
    here, _ = lab
    prompts = [[5 + n] * 96 for n in range(4)]
    asked = [{"prompt": prompt, "embed": Embedding()} for prompt in prompts]
    wanted = [vector(result) for result in await here.answers(*asked)]
    requests = [await here.ask(**kwargs) for kwargs in asked]
    await here.until(requests[0], lambda types: "request.started" in types)
    await here.kill_core()
    results = [await here.result(request) for request in requests]
    assert any("request.abandoned" in result.types for result in results)
    for result, want in zip(results, wanted, strict=True):
        assert result.types.count("request.embedded") == 1
        assert vector(result) == pytest.approx(want, abs=1e-3)


def vector(result: Result) -> list[float]:
    (embedded,) = [e for e in map(codec.decode, result.events) if isinstance(e, RequestEmbedded)]
    return list(struct.unpack(f"<{embedded.dimensions}f", b64decode(embedded.vector)))


async def test_a_killed_core_changes_no_answer(lab: tuple[Lab, list[Result]]) -> None:
    here, undisturbed = lab
    requests = [await here.ask(**kwargs) for kwargs in ASKED]
    for batches in (4, 9):
        for request in requests:
            await here.streaming(request, batches)
        await here.kill_core()
        await here.until(
            requests[0], lambda t, n=batches: t.count("request.started") > (1 if n == 4 else 2)
        )
    results = [await here.result(request) for request in requests]
    same(results, undisturbed)
    abandoned = [p for e in results[0].events if isinstance(p := codec.decode(e), RequestAbandoned)]
    assert len(abandoned) == 2
    assert "SIGKILL" in abandoned[0].reason
    started = [p for e in results[0].events if isinstance(p := codec.decode(e), RequestStarted)]
    assert started[0].resumed_tokens == 0 < started[1].resumed_tokens < started[2].resumed_tokens
    events = [e async for e in here.store.read(stream="worker/w1", types=("worker.crashed",))]
    crash = codec.decode(events[-1])
    assert isinstance(crash, WorkerCrashed)
    assert set(crash.requests) == set(requests)


async def test_who_crashes_the_core_again_and_again_fails_and_nobody_else(
    lab: tuple[Lab, list[Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, undisturbed = lab
    monkeypatch.setattr(Backoff, "next", lambda self: 0.0)
    # a prompt of many steps: the core dies before the first token, which would be progress
    poison = await here.ask(list(range(100, 330)), max_tokens=20, ignore_eos=True)
    innocent = await here.ask(**ASKED[1])
    for times in (1, 2, 3):
        await here.until(poison, lambda t, n=times: t.count("request.started") >= n)
        await here.kill_core()
    failed = (await here.result(poison)).failed
    assert failed.code == "error"
    assert "crashed 3 times" in failed.message
    same([await here.result(innocent)], [undisturbed[1]])


async def test_losing_the_log_for_a_while_is_losing_the_claims(
    model_path: Path, lab: tuple[Lab, list[Result]]
) -> None:
    """A heartbeat or an append errs: nothing is written until the claims were given back."""
    undisturbed = lab[1]

    class Flaky(MemoryStore):
        broken = ""

        def fail(self, method: str) -> None:
            if self.broken == method:
                self.broken = ""
                raise StoreError("the network is down")

        async def heartbeat(self, *, worker: str, lease: float) -> list[Fence]:
            self.fail("heartbeat")
            return await super().heartbeat(worker=worker, lease=lease)

        async def append_many(self, appends: Sequence[Append]) -> list[Outcome]:
            self.fail("append_many")
            return await super().append_many(appends)

    store = Flaky()
    async with store, serving(store, str(model_path), lease_seconds=1.0, **CONFIG) as here:
        requests = [await here.ask(**kwargs) for kwargs in ASKED]
        for claim, method in enumerate(("heartbeat", "append_many"), start=1):
            for request in requests:
                await here.until(request, lambda t, n=claim: t.count("request.started") == n)
            store.broken = method
        results = [await here.result(request) for request in requests]
    same(results, undisturbed)
    reasons = [
        p.reason for e in results[0].events if isinstance(p := codec.decode(e), RequestAbandoned)
    ]
    assert reasons == ["lost authority"] * 2


async def test_another_worker_takes_over_what_a_silent_one_held(
    model_path: Path, lab: tuple[Lab, list[Result]]
) -> None:
    """The claims of a worker that vanished are swept up when their lease runs out."""
    async with MemoryStore() as store:
        here = Lab(store)
        requests = [await here.ask(**kwargs) for kwargs in ASKED]
        await store.claim(worker="vanished", limit=9, lease=0.5)
        async with serving(store, str(model_path), lease_seconds=1.0, **CONFIG):
            same([await here.result(request) for request in requests], lab[1])


HOST = """
import asyncio, sys
from app.config import EngineConfig
from app.engine.host import EngineHost
from app.events.sqlite import SqliteStore
from pathlib import Path

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]), synchronous="normal")
    config = EngineConfig(model=sys.argv[2], max_context=256, kv_memory=128 << 20)
    await EngineHost(store, config, worker="w1").run()

asyncio.run(main())
"""


async def test_a_killed_host_takes_its_core_along_and_the_next_goes_on(
    model_path: Path, tmp_path: Path, lab: tuple[Lab, list[Result]]
) -> None:
    path = tmp_path / "log.db"
    async with sqlite(path) as store:
        requests = [await Lab(store).ask(**kwargs) for kwargs in ASKED]
    host = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOST, str(path), str(model_path)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        seen = await watch(path, requests)
    finally:
        host.kill()
    assert await host.wait() == -signal.SIGKILL
    async with sqlite(path) as store:
        await gone(await Lab(store).core_pid())
        async with serving(store, str(model_path), **CONFIG) as here:
            results = [await here.result(request) for request in requests]
    same(results, lab[1])
    assert all(r.types.count("request.abandoned") == 1 for r in results)
    assert all(r.tokens[: len(tokens)] == tokens for r, tokens in zip(results, seen, strict=True))


async def watch(path: Path, requests: list[str]) -> list[list[int]]:
    """Read beside the process that writes, until all requests have tokens; returns them."""
    store = await SqliteStore.open(path, read_only=True)
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            streams = [await store.fetch(stream=request_stream(r)) for r in requests]
            seen = [Result(events).check().tokens for events in streams]
            if all(len(tokens) >= 5 for tokens in seen):
                return seen
            await asyncio.sleep(0.02)
    finally:
        await store.aclose()
    raise AssertionError("no tokens")

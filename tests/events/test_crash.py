"""``kill -9`` at random instants: everything acknowledged is in the log, once, and it goes on."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.events.logstore import LogStore
from app.events.open import open_store
from app.events.queue import Request, fold, to_lease
from app.events.store import Append, Duplicate
from app.events.verify import verify
from tests.contract.support import note

ROUNDS = 12
ROOT = Path(__file__).parents[2]


def run_and_kill(path: Path, seconds: float) -> list[tuple[int, str, int, str]]:
    """Let a process append, kill it; what it had acknowledged."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.events.appender", str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        assert first
        time.sleep(seconds)
        child.kill()
        lines = [first, *child.stdout]
    if not lines[-1].endswith("\n"):  # killed while it printed
        lines.pop()
    return [
        (int(seq), stream, int(version), request)
        for seq, stream, version, request in (line.split() for line in lines)
    ]


async def check(store: LogStore, acknowledged: list[tuple[int, str, int, str]]) -> None:
    events = [event async for event in store.read()]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    versions: dict[str, int] = {}
    rows: dict[str, Request | None] = {}
    for event in events:
        versions[event.stream] = versions.get(event.stream, 0) + 1
        assert event.version == versions[event.stream]
        if event.request is not None:
            rows[event.request] = fold(rows.get(event.request), event)
    for seq, stream, version, request in acknowledged:
        ping, queued = events[seq - 1], events[seq]
        assert (ping.stream, queued.version) == (stream, version)
        assert ping.data == b'"%s"' % request.encode()
        assert queued.request == request
    leases = await store.leases(open_only=False)
    assert len(leases) == len(rows)
    for lease in leases:
        row = rows[lease.request]
        assert row is not None
        folded = to_lease(row)
        assert (folded.state, folded.epoch, folded.worker) == (
            lease.state,
            lease.epoch,
            lease.worker,
        )


@pytest.mark.crash
async def test_killed_again_and_again(tmp_path: Path) -> None:
    rng = random.Random(11)
    path = tmp_path / "log.db"
    acknowledged: list[tuple[int, str, int, str]] = []
    for round in range(ROUNDS):
        fresh = run_and_kill(path, rng.uniform(0, 0.08))
        acknowledged += fresh
        async with open_store(str(path)) as store:
            if round % 4 == 3:
                await check(store, acknowledged)
            for _, stream, version, request in fresh[-3:]:  # sent again, it takes no effect
                again = Append(stream=stream, events=[note("again")], command=request)
                outcome = await store.append(again)
                assert isinstance(outcome, Duplicate) and outcome.version == version
    async with open_store(str(path)) as store:
        report = await verify(store)
        assert report.ok, report.problems
    assert len(acknowledged) > ROUNDS * 10

"""Loops under load that kill, freeze, cut and crash; `make torture` runs them for longer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.events.envelope import Event
from tests.crash.load import torture
from tests.crash.plan import ROUNDS, seconds_for
from tests.crash.world import world
from tests.support.postgres import Cluster, cluster, new_database

CHATTER = str(Path(__file__).parent / "chatter.py")
EDGES = ("kill_edge", "freeze_edge", "end_edge", "cut")
WORKERS = ("kill_worker", "freeze_worker", "kill_core", "crash_database")
ALL = (*WORKERS, "end_worker", "kill_edge", "freeze_edge", "end_edge", "cut")

pytestmark = [pytest.mark.crash, pytest.mark.timeout(seconds_for(len(ALL)))]


@pytest.fixture(scope="module")
def fragile() -> Iterator[Cluster]:
    """A Postgres of these tests' own, since they crash it."""
    with cluster(fsync="off") as running:
        yield running


def count(events: list[Event]) -> Counter[str]:
    """How many events there are of each type; shown with ``-s``."""
    types = Counter(event.type for event in events)
    print("  " + ", ".join(f"{types[type]} {type}" for type in sorted(types)))
    return types


async def test_one_server(tmp_path: Path) -> None:
    async with world(tmp_path, tmp_path / "log.db", CHATTER, "--no-engine", edges=1) as one:
        events, _ = await torture(one, EDGES, threads=4)
    assert count(events)["run.interrupted"], "no run was hit: the test proves nothing"


async def test_two_edges(tmp_path: Path, fragile: Cluster) -> None:
    url = await new_database(fragile)
    async with world(tmp_path, url, CHATTER, "--no-engine", cluster=fragile) as two:
        events, _ = await torture(two, (*EDGES, "crash_database"), threads=4)
        assert set(two.front.served) == {edge.port for edge in two.edges}
    assert count(events)["run.interrupted"], "no run was hit: the test proves nothing"


@pytest.mark.model
async def test_two_edges_and_two_workers(tmp_path: Path, fragile: Cluster) -> None:
    url = await new_database(fragile)
    params = {"max_tokens": 24 if ROUNDS else 12, "ignore_eos": True}
    kinds, threads = (ALL, 4) if ROUNDS else (WORKERS, 2)
    async with world(tmp_path, url, "--no-engine", workers=2, cluster=fragile) as house:
        events, _ = await torture(house, kinds, threads=threads, params=params)
    types = count(events)
    assert types["request.abandoned"], "no request was hit: the test proves nothing"
    assert types["request.finished"]

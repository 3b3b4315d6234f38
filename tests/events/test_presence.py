"""Names that are kept alive on every kind of log, and what they tell of each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.errors import InputError, StartupError
from app.events.open import open_store
from app.events.presence import Presence, check_name, place
from app.events.store import EventStore
from tests.support.postgres import new_database

LEASE = 0.6


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EventStore]:
    url = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path / 'log.db'}"}.get(request.param)
    if url is None:
        url = await new_database(request.getfixturevalue("postgres"))
    async with open_store(url, synchronous="normal") as opened:
        yield opened


async def test_a_beat_lasts_a_lease(store: EventStore) -> None:
    assert await store.beat(node="a", lease=LEASE) == {"a"}
    assert await store.beat(node="b", lease=60) == {"a", "b"}
    await asyncio.sleep(LEASE * 1.1)
    assert await store.beat(node="b", lease=60) == {"b"}
    await store.leave(node="b")
    assert await store.beat(node="c", lease=60) == {"c"}
    await store.leave(node="nobody")


async def test_who_is_gone_is_known_after_a_lease_of_our_own(store: EventStore) -> None:
    a, b = (Presence(store, name, lease=LEASE) for name in "ab")
    for presence in (a, b):
        await presence.enter()
    tasks = [asyncio.create_task(presence.run()) for presence in (a, b)]
    await a.beat()
    assert a.live == {"a", "b"}
    assert not a.gone("b") and not a.gone("a")
    if not getattr(store, "exclusive", False):
        assert not a.gone("c")  # too early to tell
    await asyncio.sleep(LEASE * 1.2)
    assert a.gone("c") and not a.gone("b")
    await b.leave()
    await a.beat()
    assert a.gone("b")
    await asyncio.wait(tasks[1:])  # who has left beats no more
    tasks[0].cancel()
    await asyncio.sleep(LEASE * 1.1)
    assert not a.certain  # it was not heard of for a lease
    assert not a.gone("c")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await a.sure()


async def test_a_name_is_one_process(store: EventStore) -> None:
    first = Presence(store, "a", lease=LEASE, place="here")
    await first.enter()
    beating = asyncio.create_task(first.run())
    with pytest.raises(StartupError, match="'a'"):
        await Presence(store, "a", lease=LEASE).enter()
    assert await store.beat(node="x", lease=1) != {"x"}
    await first.beat()
    assert first.live == {"a", "x"}  # the one that was refused is not among them
    beating.cancel()  # dead
    async with asyncio.timeout(LEASE / 2):
        await Presence(store, "a", lease=LEASE, place="here").enter()  # in its place: at once
    await Presence(store, "a", lease=LEASE, place="there").enter()  # elsewhere: after a lease


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a#b", "x" * 101, "a\n"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InputError) as caught:
        check_name(name, "server.node")
    assert caught.value.field == "server.node"


def test_places() -> None:
    assert check_name("host.example:8000", "server.node") == "host.example:8000"
    assert place("1.2.3.4:1") == place("1.2.3.4:1") != place("1.2.3.4:2")

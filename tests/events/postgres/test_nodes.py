"""Several nodes on one log: one order for all, whatever is lost on the way."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import AsyncExitStack

import msgspec
import pytest

from app.events import pg
from app.events.ids import uuid7
from app.events.postgres import PostgresStore
from app.events.store import Append, Appended, Conflict, Duplicate
from app.events.verify import verify
from tests.contract.support import enqueue, note, notes, write
from tests.events.postgres.conftest import Follower, Writer, check, opened
from tests.support.balancer import balancing
from tests.support.postgres import Cluster, cluster, new_database


async def test_nodes_append_beside_each_other(postgres_url: str) -> None:
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(opened(postgres_url)) for _ in range(4)]
        followers = [Follower(node) for node in nodes]
        writers = [Writer(node, f"{at}-{n}") for at, node in enumerate(nodes) for n in range(3)]
        await asyncio.gather(*(writer.run(40) for writer in writers))
        assert await nodes[0].head() == 12 * 40
        await check(nodes[0], writers, followers)
        assert (await verify(nodes[3])).ok
        await asyncio.gather(*(follower.stop() for follower in followers))


async def test_nodes_in_one_stream(postgres_url: str) -> None:
    """A version that another node has overtaken is noticed, and so is a wrong expectation."""
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        for at in range(1, 20):
            store = (one, two)[at % 2]
            done = await store.append(notes("thread/a", str(at), expected=at - 1))
            assert isinstance(done, Appended)
            assert done.version == at
        await asyncio.gather(
            *(node.append(notes("thread/a", "x")) for _ in range(30) for node in (one, two))
        )
        events = await one.fetch(stream="thread/a")
        assert [event.version for event in events] == list(range(1, 80))
        assert await two.append(notes("thread/a", "no", expected=5)) == Conflict(79)


async def test_what_is_known_here_and_what_is_there(postgres_url: str) -> None:
    """A fresh look shows what another node has committed; any look shows what was heard of."""
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        for at in range(1, 40):
            writer, other = (one, two) if at % 3 else (two, one)
            await writer.append(notes("thread/a", str(at)))
            assert len(await writer.fetch(stream="thread/a", fresh=False)) == at
            known = await other.fetch(stream="thread/a", fresh=False)
            assert [event.version for event in known] == list(range(1, len(known) + 1))
            if at % 2:
                assert len(await other.fetch(stream="thread/a")) == at
            else:
                await other.wait(after=at - 1, stream="thread/a")
                assert len(await other.fetch(stream="thread/a", fresh=False)) == at


async def test_a_command_sent_to_two_nodes(postgres_url: str) -> None:
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        append = notes("thread/a", "once", command="c1")
        outcomes = await asyncio.gather(one.append(append), two.append(append))
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Appended", "Duplicate"]
        assert await two.append(append) == Duplicate(1, 1)


async def test_workers_race_for_requests(postgres_url: str) -> None:
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        for at in range(30):
            await enqueue(one, f"r{at}", f"thread/{at % 3}")
        claims = await asyncio.gather(
            *(node.claim(worker=f"w{n}", limit=4, lease=5) for n in range(5) for node in (one, two))
        )
        claimed = [claim.request for some in claims for claim in some]
        assert len(claimed) == len(set(claimed))
        rest = await one.claim(worker="rest", limit=40, lease=5)
        assert len(claimed) + len(rest) == 30
        assert {lease.state for lease in await two.leases()} == {"claimed"}


async def test_leases_run_on_the_servers_clock(postgres_url: str) -> None:
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        await enqueue(one, "r")
        (claim,) = await one.claim(worker="w1", limit=1, lease=0.3)
        assert await two.expire() == []
        await asyncio.sleep(0.4)
        assert await two.expire() == ["r"]
        (again,) = await two.claim(worker="w2", limit=1, lease=5)
        assert (claim.epoch, again.epoch) == (1, 2)
        assert await one.heartbeat(worker="w1", lease=5) == []
        outcome = await write(one, "request.started", "r", epoch=1)
        assert type(outcome).__name__ == "Fenced"


async def test_nodes_know_of_each_other(postgres_url: str) -> None:
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        assert await one.beat(node="a", lease=0.3) == {"a"}
        assert await two.beat(node="b", lease=30) == {"a", "b"}
        await asyncio.sleep(0.4)
        assert await two.beat(node="b", lease=30) == {"b"}
        await two.leave(node="b")
        assert await one.beat(node="a", lease=30) == {"a"}


async def test_old_commands_are_forgotten_by_the_servers_clock(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose clock is weeks ahead does not make all others forget what was just done."""
    old, fresh = (notes("thread/a", text, command=text) for text in ("old", "fresh"))
    async with opened(postgres_url) as store:
        await store.append(old)
        await store.append(fresh)
        admin = await pg.connect(postgres_url)
        await admin.execute("UPDATE command SET time = time - 8 * 86400e9 WHERE id = 'old'")
        await admin.close()
        ahead = time.time_ns() + 90 * 86_400 * 10**9
        monkeypatch.setattr("app.events.postgres.time.time_ns", lambda: ahead)
        await store._tidy()
        assert await store.append(fresh) == Duplicate(2, 2)
        assert isinstance(await store.append(old), Appended)


async def test_few_connections(postgres: Cluster, postgres_url: str) -> None:
    """Readers wait for each other rather than leave the writer out."""
    admin = await pg.connect(postgres_url)
    role = f"few_{uuid7()}".replace("-", "_")
    await admin.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 3")
    await admin.execute(f"CREATE SCHEMA {role} AUTHORIZATION {role}")
    url = postgres_url.replace("//everlog@", f"//{role}@") + f"?search_path={role}"
    async with opened(url) as store:
        reads = [store.fetch(stream=f"thread/{n}") for n in range(20)]
        async with asyncio.timeout(10):
            await asyncio.gather(store.append(notes("thread/a", "1")), *reads)
        assert await store.head() == 1
    await admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    await admin.close()


async def test_names_that_need_escapes(postgres_url: str) -> None:
    """Hashes are computed by the server here; they must be those that Python computes."""
    async with opened(postgres_url) as store:
        for text in ('"', "\\", "ü", "\x01\x1f\x7f", "🎈", "</script>", "'; --"):
            event = msgspec.structs.replace(note(text), actor=text, cause=text, run=text)
            stream = "thread/" + re.sub(r"[\s\x00-\x20/]", "_", text)
            await store.append(Append(stream=stream, events=[event, event]))
        report = await verify(store)
        assert report.ok, report.problems
        assert report.events == 14


async def test_a_long_transaction_of_somebody_else(postgres_url: str) -> None:
    """Others may write and hold snapshots for hours; readers and writers go on."""
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        other = await pg.connect(postgres_url)
        await other.execute("CREATE TABLE unrelated (x int)")
        transaction = other.transaction(isolation="repeatable_read")
        await transaction.start()
        await other.execute("INSERT INTO unrelated VALUES (1)")
        follower = Follower(two)
        writer = Writer(one, "a")
        await asyncio.wait_for(writer.run(50), 10)
        await follower.reached(50, seconds=2)
        await transaction.rollback()
        await other.close()
        await follower.stop()


async def test_lost_notifications_cost_latency_only(postgres_url: str) -> None:
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        follower = Follower(two)
        await one.append(notes("thread/a", "1"))
        await follower.reached(1)
        admin = await pg.connect(postgres_url)
        killed = await admin.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE query ILIKE 'LISTEN%' AND datname = current_database()"
        )
        assert killed >= 2
        await one.append(notes("thread/a", "2"))
        await follower.reached(2, seconds=2)
        await admin.close()
        await follower.stop()


async def test_an_answer_lost_with_the_connection(postgres_url: str) -> None:
    """Connections die at random moments; each append takes effect once all the same."""
    async with opened(postgres_url) as store:
        writers = [Writer(store, str(at)) for at in range(4)]
        follower = Follower(store)
        tasks = [asyncio.create_task(writer.run()) for writer in writers]
        admin = await pg.connect(postgres_url)
        for at in range(15):
            await asyncio.sleep(0.03 + at * 0.004)
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        for writer in writers:
            writer.stopping = True
        await asyncio.wait_for(asyncio.gather(*tasks), 10)
        await check(store, writers, [follower])
        await admin.close()
        await follower.stop()


async def test_connections_that_the_network_has_forgotten(
    postgres: Cluster, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody says that they are dead: reads, appends and heartbeats notice by themselves."""
    monkeypatch.setattr(pg, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(pg, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr("app.events.postgres.CALL_SECONDS", 0.5)
    with balancing(postgres.port) as between:
        url = postgres_url.replace(f":{postgres.port}/", f":{between.port}/")
        async with opened(url) as store, opened(postgres_url) as other:
            follower = Follower(store)
            await asyncio.gather(*(store.append(notes(f"thread/{n}", "1")) for n in range(9)))
            await asyncio.gather(*(store.fetch(stream=f"thread/{n}") for n in range(9)))
            between.silence()
            async with asyncio.timeout(15):
                await other.append(notes("thread/a", "2"))
                await asyncio.gather(store.head(), store.heartbeat(worker="w", lease=1))
                await store.append(notes("thread/a", "3"))
                await follower.reached(11)
            await follower.stop()


async def test_another_isolation_level_by_default(postgres_url: str) -> None:
    admin = await pg.connect(postgres_url)
    name = await admin.fetchval("SELECT current_database()")
    await admin.execute(
        f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"
    )
    await admin.close()
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(opened(postgres_url)) for _ in range(4)]
        writers = [Writer(node, f"{at}-{n}") for at, node in enumerate(nodes) for n in range(3)]
        await asyncio.gather(*(writer.run(20) for writer in writers))
        await check(nodes[0], writers, [])


@pytest.mark.crash
@pytest.mark.parametrize("version", ["wheel", "system"])
async def test_the_server_crashes_under_load(version: str) -> None:
    """Everybody waits, nothing acknowledged is lost, and all goes on by itself."""
    try:
        server = cluster(version)  # type: ignore[arg-type]
        running = server.__enter__()
    except AssertionError:
        pytest.skip("this machine has no Postgres of its own")
    try:
        await _crash_and_go_on(running)
    finally:
        server.__exit__(None, None, None)


async def _crash_and_go_on(server: Cluster) -> None:
    url = await new_database(server)
    async with opened(url) as one, opened(url) as two:
        writers = [Writer(node, f"{at}") for at, node in enumerate((one, one, two, two))]
        followers = [Follower(node) for node in (one, two)]
        tasks = [asyncio.create_task(writer.run()) for writer in writers]
        for away in (0.0, 0.5):
            await asyncio.sleep(0.5)
            await asyncio.to_thread(server.stop, "immediate")
            waiting = asyncio.create_task(one.fetch(after=0, limit=1))
            await asyncio.sleep(away)
            assert not waiting.done()
            await asyncio.to_thread(server.start)
            assert await asyncio.wait_for(waiting, 10)
        await asyncio.sleep(0.5)
        for writer in writers:
            writer.stopping = True
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        assert all(writer.acknowledged for writer in writers)
        await check(one, writers, followers)
        await asyncio.gather(*(follower.stop() for follower in followers))


async def test_closing_while_the_database_is_away() -> None:
    with cluster(fsync="off") as server:
        url = await new_database(server)
        store: PostgresStore = await PostgresStore.open(url)
        await store.append(notes("thread/a", "1"))
        await asyncio.to_thread(server.stop, "immediate")
        late = asyncio.create_task(store.append(notes("thread/a", "2")))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(20):
            await store.aclose()
        with pytest.raises(Exception, match="does not answer"):
            await late

"""Opening a log in Postgres: what can be wrong, and what the message says to do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import InputError, StartupError
from app.events import pg
from app.events.migrate import migrate, pending
from app.events.migration import migrations
from app.events.open import open_store
from app.events.postgres_migrate import apply
from app.events.store import Append, StoreClosed
from app.events.url import parse_url
from tests.contract.support import note, notes
from tests.events.postgres.conftest import Follower
from tests.support.postgres import (
    Cluster,
    binaries,
    cluster,
    make_certificate,
    new_database,
)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Cluster]:
    """A server that asks for a password."""
    with cluster(fsync="off", password="s3cret") as running:
        yield running


async def refused(url: str) -> StartupError:
    with pytest.raises(StartupError) as caught:
        async with open_store(url):
            pass
    assert "s3cret" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://", "postgresql://"),
        ("postgres://me:pw@h:5432/db?sslmode=require", "postgresql://me@h:5432/db"),
        ("postgresql:///db?host=/run/x", "postgresql:///db"),
        ("postgresql://me:pw@a:5432,b:5433/db", "postgresql://me@a:5432,b:5433/db"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    database = parse_url(url)
    assert (database.kind, database.dsn, database.shown) == ("postgres", url, shown)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:x",
        "postgresql://h:99999/x",
        "postgresql://g,h:x/x",
        "postgresql://h/a b",
        "postgresql://[/x",
    ],
)
def test_malformed_urls(url: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_url(url)
    assert caught.value.field == "database.url"


async def test_options_that_are_wrong() -> None:
    with pytest.raises(InputError) as caught:
        async with open_store("postgresql://127.0.0.1/x?sslmode=perhaps"):
            pass
    assert caught.value.field == "database.url"


async def test_a_wrong_password(guarded: Cluster) -> None:
    error = await refused(guarded.url().replace("s3cret", "wrong"))
    assert "password authentication failed" in str(error)
    assert "PGPASSWORD" in (error.hint or "")


async def test_a_database_that_is_not_there(guarded: Cluster) -> None:
    error = await refused(guarded.url("nowhere"))
    assert "nowhere" in str(error)
    assert "createdb" in (error.hint or "")


async def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        error = await refused(f"postgresql://u:s3cret@127.0.0.1:{port}/x")
    assert "host and port" in (error.hint or "")


async def test_the_usual_variables(guarded: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    url = parse_url(await new_database(guarded))
    assert url.dsn is not None
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(guarded.port))
    monkeypatch.setenv("PGUSER", "everlog")
    monkeypatch.setenv("PGPASSWORD", "s3cret")
    monkeypatch.setenv("PGDATABASE", url.dsn.rpartition("/")[2])
    async with open_store("postgresql://") as store:
        await store.append(notes("thread/a", "1"))


async def test_a_server_without_tls(guarded: Cluster) -> None:
    error = await refused(guarded.url("postgres", sslmode="require"))
    assert "SSL" in str(error)


@pytest.fixture(scope="module")
def encrypted() -> Iterator[Cluster]:
    """A server with TLS and a certificate of its own. The wheel's Postgres cannot do TLS."""
    if binaries("system") is None:
        pytest.skip("this machine has no Postgres of its own")
    with cluster("system", fsync="off") as running:
        running.stop()
        make_certificate(running.folder)
        running.start(
            ssl="on",
            ssl_cert_file=str(running.folder / "server.crt"),
            ssl_key_file=str(running.folder / "server.key"),
        )
        yield running


@pytest.mark.parametrize("mode", ["require", "verify-full"])
async def test_tls(encrypted: Cluster, mode: str) -> None:
    url = await new_database(encrypted)
    options = f"?sslmode={mode}&sslrootcert={encrypted.folder / 'server.crt'}"
    async with open_store(url + options) as store:
        await store.append(notes("thread/a", "1"))
    conn = await pg.connect(url + options)
    assert await conn.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    await conn.close()


async def test_tls_with_a_certificate_nobody_vouches_for(
    encrypted: Cluster, tmp_path: Path
) -> None:
    stranger = make_certificate(tmp_path)
    url = encrypted.url("postgres", sslmode="verify-full", sslrootcert=str(stranger))
    error = await refused(url)
    assert "certificate verify failed" in str(error)
    assert "sslrootcert" in (error.hint or "")


async def test_a_database_of_a_newer_version(postgres_url: str) -> None:
    async with open_store(postgres_url) as store:
        await store.append(notes("thread/a", "1"))
    conn = await pg.connect(postgres_url)
    await conn.execute(
        "INSERT INTO schema_migration (number, name, sha256) VALUES (900, 'future', '')"
    )
    error = await refused(postgres_url)
    assert "0900_future" in str(error)
    assert "newer everlog" in (error.hint or "")
    await conn.execute("DELETE FROM schema_migration WHERE number = 900")
    await conn.execute("UPDATE schema_migration SET sha256 = 'x' WHERE number = 1")
    assert "was changed" in str(await refused(postgres_url))
    await conn.close()


async def test_nodes_that_start_together(postgres_url: str) -> None:
    async def start() -> str:
        async with open_store(postgres_url) as store:
            return store.incarnation

    assert len(set(await asyncio.gather(*(start() for _ in range(5))))) == 1


def test_migrating_by_command(postgres: Cluster) -> None:
    url = postgres.new_database()
    wanted = [str(migration) for migration in migrations("postgres")]
    assert [str(m) for m in pending(url)] == wanted
    assert [str(m) for m in migrate(url)] == wanted
    assert pending(url) == migrate(url) == []


async def test_one_by_one_is_the_same_as_all_at_once(postgres: Cluster) -> None:
    async def schema(steps: list[int]) -> list[str]:
        conn = await pg.connect(await new_database(postgres))
        for count in steps:
            await apply(conn, migrations("postgres")[:count])
        rows = await conn.fetch(
            "SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable"
            " FROM information_schema.columns WHERE table_schema = current_schema()"
            " UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()"
            " UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc"
            " WHERE pronamespace = current_schema()::regnamespace ORDER BY 1"
        )
        await conn.close()
        return [row[0] for row in rows]

    count = len(migrations("postgres"))
    assert await schema(list(range(1, count + 1))) == await schema([count])


async def test_reading_needs_a_log(postgres_url: str) -> None:
    with pytest.raises(StartupError, match="lacks migration 0001"):
        async with open_store(postgres_url, read_only=True):
            pass


async def test_reading_only(postgres_url: str) -> None:
    async with open_store(postgres_url) as writing, open_store(postgres_url, read_only=True) as it:
        await writing.append(notes("thread/a", "1"))
        async for events in it.follow():
            assert [event.seq for event in events] == [1]
            break
        with pytest.raises(StoreClosed):
            await it.append(Append(stream="thread/a", events=[note("2")]))


async def test_schemas_are_logs_of_their_own(postgres: Cluster, postgres_url: str) -> None:
    conn = await pg.connect(postgres_url)
    await conn.execute("CREATE SCHEMA one; CREATE SCHEMA two")
    await conn.close()
    urls = [f"{postgres_url}?search_path={name}" for name in ("one", "two")]
    async with open_store(urls[0]) as one, open_store(urls[1]) as two:
        await one.append(notes("thread/a", "1", "2"))
        await two.append(notes("thread/b", "1"))
        assert (await one.head(), await two.head()) == (2, 1)
        assert one.incarnation != two.incarnation
    error = await refused(f"{postgres_url}?search_path=three")
    assert "CREATE SCHEMA" in (error.hint or "")


async def set_back(url: str, seq: int) -> None:
    """Fail over to a replica that had not received the events from ``seq`` on."""
    conn = await pg.connect(url)
    await conn.execute("DELETE FROM event WHERE seq >= $1", seq)
    await conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await conn.close()


async def test_a_log_that_was_set_back(postgres_url: str) -> None:
    """After a failover that lost events nothing is written over what clients have seen."""
    async with open_store(postgres_url) as store:
        await store.append(notes("thread/a", "1", "2"))
        await set_back(postgres_url, 2)
        with pytest.raises(Exception, match="an older one"):
            await store.append(notes("thread/a", "3"))


async def test_a_log_that_was_set_back_and_has_grown_since(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another node was faster: what is there has the same positions, and other content."""
    async with open_store(postgres_url) as store:
        follower = Follower(store)
        await store.append(notes("thread/a", "1", "2"))
        await follower.reached(2)
        await set_back(postgres_url, 2)
        async with open_store(postgres_url) as other:
            await other.append(notes("thread/b", "another 2", "3"))
        async with asyncio.timeout(5):
            while "an older one" not in caplog.text:  # noqa: ASYNC110 - a log line
                await asyncio.sleep(0.02)
        with pytest.raises(Exception, match="event 2 has been seen with other content"):
            await store.append(notes("thread/a", "3"))
        assert [event.seq for event in follower.seen] == [1, 2]
        await follower.stop()

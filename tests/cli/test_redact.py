"""`everlog redact` on a real log with read models beside it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import asyncpg
import pytest

from app.events import catalogue as c
from app.events.archive import archive_threads
from app.events.codec import new
from app.events.envelope import thread_stream
from app.events.objects import DirectoryObjects
from app.events.open import open_store
from app.events.store import Append
from app.events.verify import verify
from app.projections.views import Views
from tests.cli.conftest import OTHER, Run
from tests.cli.story import THREAD
from tests.support.postgres import Cluster

pytestmark = pytest.mark.usefixtures("database")

SECRETS = (b"capital of France", b"Paris", b"Atlantis", b"look_up", b"no such city", b"sunny")


def found_in(folder: Path) -> dict[str, list[bytes]]:
    """Files that hold any of the secrets."""
    files = [path for path in folder.iterdir() if path.is_file()]
    found = {path.name: [s for s in SECRETS if s in path.read_bytes()] for path in files}
    return {name: secrets for name, secrets in found.items() if secrets}


def test_a_conversation(run: Run, database: Path) -> None:
    saved = run("head", "--json").stdout
    assert "Paris" in run("show", THREAD).stdout
    run("threads", "--search", "atlantis")  # makes the read models
    assert found_in(database.parent).keys() == {"everlog.db", "everlog.db.views"}
    result = run("redact", "--thread", THREAD, "--yes")
    assert "the content of 16 events in 1 conversation is erased; recorded at seq 31" in (
        result.stdout
    )
    assert "Backups" in result.stdout
    assert found_in(database.parent) == {}
    assert database.with_name("everlog.db.views").exists()
    assert "No conversation" in run("threads", "--search", "atlantis").stdout
    [row] = [
        row for row in json.loads(run("threads", "--json").stdout)["items"] if row["id"] == THREAD
    ]
    assert (row["title"], row["messages"]) == ("[redacted]", 4)
    assert run("show", THREAD).stdout.count("[redacted]") == 5
    run("timeline", THREAD)
    run("replay", THREAD, "--speed", "0")
    (database.parent / "head.json").write_text(saved)
    assert "16 of them redacted" in run("verify", "--head", "head.json").stdout
    assert found_in(database.parent) == {}


def test_again_does_nothing(run: Run, database: Path) -> None:
    run("redact", "--thread", THREAD, "--yes")
    before = database.read_bytes()
    assert "no content left" in run("redact", "--thread", THREAD, "--yes").stdout
    assert database.read_bytes() == before


def test_a_user(run: Run, database: Path) -> None:
    done = json.loads(run("redact", "--user", "local", "--yes", "--json").stdout)
    assert set(done["threads"]) == {THREAD, OTHER}
    assert done["clean"] is True
    assert not database.with_name("everlog.db.views").exists()
    titles = [row["title"] for row in json.loads(run("threads", "--json").stdout)["items"]]
    assert "Another" not in titles
    assert "nothing of a user 'zoe'" in run("redact", "--user", "zoe", "--yes", code=1).stderr


def test_an_event(run: Run, database: Path) -> None:
    done = json.loads(run("redact", "--seq", "2", "--reason", "a slip", "--yes", "--json").stdout)
    assert (done["events"], done["records"]) == (1, [31])
    [line] = run("events", "--type", "log.redacted", "--json").stdout.splitlines()
    assert json.loads(line)["data"]["reason"] == "a slip"
    assert b"capital of France" not in database.read_bytes()
    assert b"Atlantis" in database.read_bytes()
    assert "no event 99" in run("redact", "--seq", "99", "--yes", code=2).stderr


def test_archived_events(run: Run, database: Path) -> None:
    folder = database.with_name("everlog.db.objects")

    async def archive() -> int:
        async with open_store(str(database), objects=DirectoryObjects(folder)) as store:
            return (await archive_threads(store, [THREAD], before=2**62)).events

    async def check() -> int:
        async with open_store(str(database), objects=DirectoryObjects(folder)) as store:
            report = await verify(store)
            assert report.ok, report.problems
            return report.redacted

    assert asyncio.run(archive()) == 27
    before = set(folder.rglob("*.zst"))
    run("redact", "--thread", THREAD, "--yes")
    assert before and not before & set(folder.rglob("*.zst"))
    assert found_in(database.parent) == {}
    assert asyncio.run(check()) == 16


def test_archived_events_that_a_backup_brought_back(run: Run, database: Path) -> None:
    """Its objects may be another log's as well: they stay, and the command names them."""
    folder = database.with_name("everlog.db.objects")

    async def archive() -> None:
        async with open_store(str(database), objects=DirectoryObjects(folder)) as store:
            await archive_threads(store, [THREAD], before=2**62)

    asyncio.run(archive())
    [old] = [path.relative_to(folder).as_posix() for path in folder.rglob("*.zst")]
    run("migrate", "--new-incarnation")
    result = run("redact", "--thread", THREAD, "--yes")
    assert "1 object from before this log was restored" in result.stdout
    assert old in result.stdout
    assert json.loads(run("redact", "--thread", THREAD, "--yes", "--json").stdout)["objects"] == [
        old
    ]
    (folder / old).unlink()
    assert json.loads(run("redact", "--thread", THREAD, "--yes", "--json").stdout)["objects"] == []


def test_cut_short_before_the_read_models_were_made_anew(
    run: Run, postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.new_database()
    run("copy", "everlog.db", url)
    run("threads", "--search", "atlantis", "--database", url)  # makes the read models
    assert "Atlantis" in dump(url)

    def die(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("app.projections.rebuild.rebuild", die)
        run("redact", "--thread", THREAD, "--yes", "--database", url, code=130)
    assert "no content left" in run("redact", "--thread", THREAD, "--yes", "--database", url).stdout
    assert not [secret for secret in SECRETS if secret.decode() in dump(url)]


def dump(url: str) -> str:
    """All rows of all tables, as text."""

    async def read() -> str:
        conn = await asyncpg.connect(url)
        tables = await conn.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        rows = [await conn.fetch(f'SELECT t::text FROM "{name}" t') for (name,) in tables]
        events = await conn.fetch("SELECT encode(data, 'escape') FROM event")
        await conn.close()
        return "\n".join(str(row[0]) for some in (*rows, events) for row in some)

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--thread, --user or --seq"),
        (["--thread", THREAD, "--seq", "1"], "--thread, --user or --seq"),
        (["--thread", THREAD], "--yes"),
        (["--thread", THREAD, "--json"], "--yes"),
    ],
)
def test_wrong_usage_changes_nothing(
    run: Run, database: Path, args: list[str], message: str
) -> None:
    before = database.read_bytes()
    assert message in run("redact", *args, code=2).stderr
    assert database.read_bytes() == before


def test_while_a_server_has_the_log(run: Run, database: Path) -> None:
    async def busy() -> None:
        async with open_store(str(database)):
            result = await asyncio.to_thread(run, "redact", "--thread", THREAD, "--yes", code=3)
        assert "in use by process" in result.stderr

    asyncio.run(busy())


def test_a_conversation_at_work(run: Run, database: Path) -> None:
    async def begin() -> None:
        async with open_store(str(database)) as store:
            started = new(c.RunStarted(run="r9", hook="on_message", node="n"), run="r9")
            await store.append(Append(stream=thread_stream(THREAD), events=[started]))

    asyncio.run(begin())
    result = run("redact", "--thread", THREAD, "--yes", code=1)
    assert f"conversation {THREAD} is at work" in result.stderr
    assert "start the server once" in result.stderr


def test_no_log(run: Run) -> None:
    assert "There is no log" in run("redact", "--seq", "1", "--database", "x.db", code=1).stderr
    assert not Path("x.db").exists()


async def test_in_postgres_while_a_server_serves(run: Run, postgres_url: str) -> None:
    async with open_store(postgres_url) as store, Views.open(store, postgres_url) as views:
        posted = new(c.MessagePosted(message="m", role="user", content="Zanzibar"))
        await store.append(Append(stream=thread_stream(OTHER), events=[posted]))
        await views.reached(1)
        assert len(await views.threads(owner=None, search="zanzibar")) == 1
        args = ("redact", "--thread", OTHER, "--yes", "--json", "--database", postgres_url)
        done = json.loads((await asyncio.to_thread(run, *args)).stdout)
        assert (done["events"], done["records"]) == (1, [2])
        assert await views.threads(owner=None, search="zanzibar") == []
        await store.wait(after=1)
        assert b"Zanzibar" not in (await store.fetch())[0].data
        assert (await verify(store)).redacted == 1

"""Migrations: numbered, once, checked, all or none; a new schema equals a migrated one."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.errors import StartupError
from app.events import migrate as module
from app.events.lockfile import WriterLock
from app.events.migrate import apply, migrate, outstanding, pending, statements
from app.events.migration import Migration, migrations
from app.events.sqlite_errors import startup_errors

SNAPSHOT = Path(__file__).parents[2] / "migrations/sqlite/schema.txt"


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        yield conn


def schema(conn: sqlite3.Connection) -> str:
    rows = conn.execute(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' "
        "ORDER BY type DESC, name"
    )
    return "\n\n".join(" ".join(row[0].split()) for row in rows) + "\n"


def test_the_migrated_schema_is_the_documented_one(conn: sqlite3.Connection) -> None:
    """`schema.txt` shows the whole schema at a glance; migrations, one by one, lead to it."""
    wanted = migrations()
    for count in range(1, len(wanted) + 1):
        apply(conn, wanted[:count])
    stepwise = schema(conn)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        apply(fresh, wanted)
        assert schema(fresh) == stepwise
    assert stepwise == SNAPSHOT.read_text("utf-8")


def test_migrations_run_once(conn: sqlite3.Connection) -> None:
    wanted = migrations()
    assert outstanding(conn, wanted) == wanted
    assert apply(conn, wanted) == wanted
    assert outstanding(conn, wanted) == []
    assert apply(conn, wanted) == []


def test_a_changed_migration_is_refused_by_name(conn: sqlite3.Connection) -> None:
    apply(conn, migrations())
    changed = [Migration(1, "log", migrations()[0].sql + "\n-- better")]
    with pytest.raises(StartupError, match="0001_log was changed"):
        apply(conn, changed)


def test_a_newer_database_is_refused(conn: sqlite3.Connection) -> None:
    apply(conn, [*migrations(), Migration(len(migrations()) + 1, "later", "CREATE TABLE x (y)")])
    with pytest.raises(StartupError, match="later, which this version does not know") as caught:
        apply(conn, migrations())
    assert "newer everlog" in str(caught.value.hint)


def test_another_programs_database_is_left_alone(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE bookmark (url)")
    for refuse in (apply, outstanding):
        with pytest.raises(StartupError, match=r"something else \(such as 'bookmark'"):
            refuse(conn, migrations())
    assert conn.execute("SELECT name FROM sqlite_master").fetchall() == [("bookmark",)]


def test_a_failing_migration_leaves_nothing(conn: sqlite3.Connection) -> None:
    bad = [Migration(1, "bad", "CREATE TABLE one (x); CREATE TABLE one (x);")]
    with pytest.raises(sqlite3.OperationalError):
        apply(conn, bad)
    assert conn.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_statements_keep_triggers_whole() -> None:
    trigger = "CREATE TRIGGER t AFTER INSERT ON x BEGIN\n  DELETE FROM y; DELETE FROM z;\nEND;"
    script = f"-- a; comment\nCREATE TABLE x (a);\n\n{trigger}\nSELECT ';';\n"
    assert list(statements(script)) == [
        "-- a; comment\nCREATE TABLE x (a);",
        trigger,
        "SELECT ';';",
    ]


def test_numbers_must_not_have_gaps(tmp_path: Path) -> None:
    (tmp_path / "0001_one.sql").write_text("SELECT 1;")
    (tmp_path / "0003_three.sql").write_text("SELECT 3;")
    with pytest.raises(StartupError, match="without a gap"):
        migrations(directory=tmp_path)


def test_installed_packages_carry_them_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a wheel the folder lies in the package instead of beside it."""
    inside = tmp_path / "app"
    shutil.copytree(SNAPSHOT.parents[1], inside / "migrations")
    monkeypatch.setattr(module, "__file__", str(inside / "events" / "migrate.py"))
    assert migrations()


def test_pending_and_migrate_by_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    assert pending(url) == migrations()
    assert not (tmp_path / "log.db").exists()
    assert migrate(url) == migrations()
    assert pending(url) == []
    assert migrate(url) == []
    assert pending("memory:") == migrate("memory:") == []


def test_a_database_that_another_program_has_locked_says_so(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    migrate(str(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with (
            closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as conn,
            pytest.raises(StartupError, match="locked by another program"),
            startup_errors(path),
        ):
            conn.execute("BEGIN IMMEDIATE")


def test_a_database_in_use_is_not_migrated(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "log.db")
    lock.acquire()
    try:
        with pytest.raises(StartupError, match="in use by process"):
            migrate(f"sqlite:///{tmp_path}/log.db")
    finally:
        lock.release()

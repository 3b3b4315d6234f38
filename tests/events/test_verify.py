"""Seals and verification: whatever is changed in the stored log is found, and named."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.events.envelope import Event, NewEvent
from app.events.leaf import leaf
from app.events.logstore import LogStore
from app.events.memory import MemoryStore
from app.events.merkle import EMPTY, Merkle, merkle_root
from app.events.open import open_store
from app.events.seal import Head, Sealer, head, newest_seal, seal_now
from app.events.sqlite_sql import select_rows
from app.events.store import Append
from app.events.verify import Report, verify

EVENTS = 30


def append(i: int) -> Append:
    event = NewEvent(
        type="test.ping" if i % 2 else "test.pong",
        data=b'{"number":%d,"text":"payload"}' % i,
        actor="user:local",
        request=f"request-{i}",
        run=f"run-{i}",
        cause=str(i),
    )
    return Append(stream=f"thread/{i % 3}", events=[event])


async def fill(store: LogStore) -> None:
    """Events with two seals among them and a tail without."""
    for i in range(EVENTS):
        await store.append(append(i))
        if i in (9, 19):
            assert await seal_now(store) is not None


# --------------------------------------------------------------------------------- the tree


def reference(entries: list[bytes]) -> bytes:
    """RFC 6962 §2.1, word for word."""
    if not entries:
        return sha256(b"").digest()
    if len(entries) == 1:
        return sha256(b"\0" + entries[0]).digest()
    k = 1
    while k * 2 < len(entries):
        k *= 2
    return sha256(b"\1" + reference(entries[:k]) + reference(entries[k:])).digest()


@given(st.lists(st.binary(max_size=4), max_size=70))
def test_the_tree_is_that_of_the_rfc(entries: list[bytes]) -> None:
    assert merkle_root(entries) == reference(entries)


@given(st.lists(st.lists(st.binary(max_size=4), max_size=9), max_size=20))
def test_the_root_may_be_asked_at_any_time(pages: list[list[bytes]]) -> None:
    tree, entries = Merkle(), []
    assert tree.root() == EMPTY
    for page in pages:
        entries += page
        tree.extend(page)
        assert tree.root() == reference(entries)


# ------------------------------------------------------------------------------- sound logs


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LogStore]:
    url = "memory:" if request.param == "memory" else f"{tmp_path}/log.db"
    async with open_store(url, synchronous="normal") as store:
        yield store


async def test_a_sound_log(store: LogStore) -> None:
    assert (await verify(store)).ok
    await fill(store)
    calls: list[tuple[int, int]] = []
    report = await verify(store, lambda *args: calls.append(args))
    assert report.ok, report.problems
    assert (report.events, report.seals, report.sealed) == (32, 2, 21)
    assert calls[-1] == (32, 32)


async def test_any_head_of_the_past_still_holds(store: LogStore) -> None:
    heads = [await head(store)]
    for i in range(25):
        await store.append(append(i))
        heads.append(await head(store))
        if i % 7 == 3:
            await seal_now(store)
            heads.append(await head(store))
    assert len({h.root for h in heads}) == len(heads)
    for saved in heads:
        report = await verify(store, expected=saved)
        assert report.ok, (saved, report.problems)


async def test_a_seal_says_what_the_head_said(store: LogStore) -> None:
    await store.append(append(1))
    before = await head(store)
    await seal_now(store)
    assert (await newest_seal(store)).root.hex() == before.root


async def test_seals_are_not_sealed_for_their_own_sake(store: LogStore) -> None:
    assert await seal_now(store) is None
    await store.append(append(1))
    assert await seal_now(store) is not None
    assert await seal_now(store) is None
    assert await store.head() == 2


async def test_two_sealers_at_once(store: LogStore) -> None:
    for i in range(10):
        await store.append(append(i))
        await asyncio.gather(seal_now(store), seal_now(store))
    report = await verify(store)
    assert report.ok, report.problems


async def test_the_sealer_seals_by_count_and_by_time() -> None:
    async with MemoryStore() as store, asyncio.TaskGroup() as group:
        task = group.create_task(Sealer(store, every=10, seconds=60).run())
        for i in range(10):
            await store.append(append(i))
        await asyncio.wait_for(store.wait(after=10), 5)
        task.cancel()
        task = group.create_task(Sealer(store, every=1000, seconds=0.02).run())
        await store.append(append(1))
        await asyncio.wait_for(store.wait(after=12), 5)
        await asyncio.sleep(0.1)
        assert await store.head() == 13  # it does not go on about its own seals
        task.cancel()
        assert (await verify(store)).seals == 2


# ---------------------------------------------------------------------------- damaged logs


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.db"

    async def make() -> None:
        async with open_store(str(path), synchronous="normal") as store:
            await fill(store)
            heads.append(await head(store))

    asyncio.run(make())
    return path


heads: list[Head] = []


@pytest.fixture
def tamper(pristine: Path, tmp_path: Path) -> Iterator[Callable[..., Report]]:
    """Change a copy of the log by SQL (or as bytes), verify it."""
    loop = asyncio.Runner()

    def tamper(*statements: str | Callable[[Path], None], anchored: bool = False) -> Report:
        path = tmp_path / "copy.db"
        path.write_bytes(pristine.read_bytes())
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            for statement in statements:
                if isinstance(statement, str):
                    conn.execute(statement)
        for change in statements:
            if callable(change):
                change(path)
        return loop.run(check(path, heads[0] if anchored else None))

    with loop:
        yield tamper


async def check(path: Path, expected: Head | None) -> Report:
    async with open_store(str(path), read_only=True) as store:
        return await verify(store, expected=expected)


def named(report: Report) -> set[int | None]:
    return {problem.seq for problem in report.problems}


COLUMNS: dict[str, int] = {
    "stream_id": 1,
    "version": 1,
    "type_id": 1,
    "schema": 1,
    "time": 8,
    "actor": 10,
    "request": 9,
    "run": 5,
    "cause": 1,
    "data": 29,
    "salt": 16,
    "leaf": 32,
}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    column=st.sampled_from(sorted(COLUMNS)),
    seq=st.integers(1, EVENTS + 2).filter(lambda seq: seq not in (11, 22)),  # the seals
    place=st.integers(0, 31),
    bits=st.integers(1, 255),
)
def test_any_changed_byte_of_any_column_is_found_and_named(
    tamper: Callable[..., Report], column: str, seq: int, place: int, bits: int
) -> None:
    def flip(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            conn.text_factory = bytes
            [value] = conn.execute(f"SELECT {column} FROM event WHERE seq = {seq}").fetchone()
            cast = "?"
            if isinstance(value, int):
                changed: Any = value ^ (bits << 8 * (place % COLUMNS[column]))
                changed -= (changed >> 63) << 64  # the highest bit is the sign
            else:
                raw = bytearray(value)
                raw[place % len(raw)] ^= bits
                changed = bytes(raw)
                is_text = column in ("actor", "request", "run", "cause")
                cast = "CAST(? AS TEXT)" if is_text else "?"
            conn.execute("PRAGMA ignore_check_constraints = ON")
            conn.execute("DROP VIEW events")
            conn.execute(f"UPDATE event SET {column} = {cast} WHERE seq = {seq}", (changed,))

    try:
        report = tamper(flip)
    except sqlite3.IntegrityError:
        return  # SQLite itself refused it
    assert not report.ok
    assert report.problems[0].seq == seq
    assert report.problems[0].kind == "changed"


@pytest.mark.parametrize("column", ["actor", "request", "run", "cause"])
def test_null_is_not_the_empty_text(tamper: Callable[..., Report], column: str) -> None:
    report = tamper(f"UPDATE event SET {column} = '' WHERE seq = 5")
    assert named(report) >= {5}


def test_bytes_moved_from_payload_to_salt(tamper: Callable[..., Report]) -> None:
    """Their hash is taken over both together."""
    for there, back in (("salt || substr(data, 1, 1)", "substr(data, 2)"), ("x''", "salt || data")):
        report = tamper(
            f"UPDATE event SET salt = CAST({there} AS BLOB), data = CAST({back} AS BLOB)"
            " WHERE seq = 5"
        )
        assert [(p.seq, p.kind) for p in report.problems[:1]] == [(5, "changed")]


async def test_events_that_json_writes_in_many_ways(store: LogStore) -> None:
    """SQLite's JSON and ours may differ; sound all the same."""
    for i, text in enumerate(("\x07\n\x7f", '"\\/', "é漢😀", "\u2028<>&'", "\0x", "ÿ" * 3000)):
        event = NewEvent(type="test.ping", data=b"{}", actor=f"user:{text}", run=text, cause=None)
        big = NewEvent(type="odd.é", data=b"\xff\0", time=2**62 + i, schema=2**31 - 1)
        await store.append(Append(stream="user/ü", events=[event, big]))
    report = await verify(store)
    assert report.ok and report.events == 12, report.problems


def test_a_changed_seal_is_named(tamper: Callable[..., Report]) -> None:
    changed = """CAST(replace(data, '"last":10', '"last":9') AS BLOB)"""
    assert 11 in named(tamper(f"UPDATE event SET data = {changed} WHERE seq = 11"))


def test_a_missing_event(tamper: Callable[..., Report]) -> None:
    report = tamper("DELETE FROM event WHERE seq = 17")
    assert (report.problems[0].seq, report.problems[0].kind) == (17, "missing")


def test_several_missing_events(tamper: Callable[..., Report]) -> None:
    report = tamper("DELETE FROM event WHERE seq BETWEEN 3 AND 6")
    assert "3..6" in report.problems[0].message


def test_swapped_events(tamper: Callable[..., Report]) -> None:
    report = tamper(
        "UPDATE event SET seq = -1 WHERE seq = 7",
        "UPDATE event SET seq = 7 WHERE seq = 8",
        "UPDATE event SET seq = 8 WHERE seq = -1",
    )
    assert named(report) >= {7, 8}


def test_an_inserted_event(tamper: Callable[..., Report]) -> None:
    report = tamper(
        "UPDATE event SET seq = seq + 1000 WHERE seq > 12",
        "UPDATE event SET seq = seq - 999 WHERE seq > 1000",
        "INSERT INTO event SELECT 13, stream_id, 999, type_id, schema, time, actor, request, run, "
        "cause, data, salt, leaf FROM event WHERE seq = 12",
    )
    assert named(report) >= {13, 14}


def test_a_renamed_stream_and_type(tamper: Callable[..., Report]) -> None:
    report = tamper("UPDATE stream SET name = 'thread/x' WHERE name = 'thread/1'")
    assert report.problems[0].seq == 2
    report = tamper("DELETE FROM event_type WHERE name = 'test.ping'")
    assert report.problems[0].seq == 2


def test_a_forged_event_breaks_its_seal(tamper: Callable[..., Report]) -> None:
    """Who recomputes the row's leaf as well is caught by the seal over it."""
    report = tamper(forge(5))
    assert [(p.seq, p.kind) for p in report.problems] == [(11, "seal")]
    assert "1..10" in report.problems[0].message


def test_only_a_saved_head_proves_the_tail(tamper: Callable[..., Report]) -> None:
    assert tamper(forge(30)).ok  # behind the last seal
    report = tamper(forge(30), anchored=True)
    assert [p.kind for p in report.problems] == ["head"]


Rows = list[tuple[Event, bytes]]


def changed(rows: Rows, at: int) -> None:
    rows[at] = (msgspec.structs.replace(rows[at][0], data=b"{}"), rows[at][1])


def missing(rows: Rows, at: int) -> None:
    del rows[at]


def reordered(rows: Rows, at: int) -> None:
    rows[at], rows[at + 1] = rows[at + 1], rows[at]


def inserted(rows: Rows, at: int) -> None:
    rows.insert(at, rows[at])


def truncated(rows: Rows, at: int) -> None:
    del rows[at + 1 :]


@pytest.mark.parametrize("kind", [changed, missing, reordered, inserted, truncated])
@pytest.mark.parametrize("at", [2, 14, 27])  # under the first seal, the second, none
def test_who_computes_all_hashes_anew_is_found_too(
    tamper: Callable[..., Report], kind: Callable[[Rows, int], None], at: int
) -> None:
    """Positions, versions and leaves are made to fit; seals are kept as they are."""

    def rewrite(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            found = [row for row in select_rows(conn, 0, 1000) if isinstance(row, tuple)]
            rows = [(event, salt) for event, salt, _ in found]
            kind(rows, at)
            conn.execute("DELETE FROM event")
            ids = dict(
                conn.execute(
                    "SELECT name, id FROM stream UNION SELECT name, id + 1000 FROM event_type"
                ).fetchall()
            )
            versions: dict[str, int] = {}
            for seq, (event, salt) in enumerate(rows, 1):
                version = versions[event.stream] = versions.get(event.stream, 0) + 1
                event = msgspec.structs.replace(event, seq=seq, version=version)
                columns = list(msgspec.structs.astuple(event))
                hashed = leaf(columns[:-1], salt, event.data)
                columns[1], columns[3] = ids[event.stream], ids[event.type] - 1000
                marks = ", ".join("?" * 13)
                conn.execute(f"INSERT INTO event VALUES ({marks})", (*columns, salt, hashed))

    assert not tamper(rewrite, anchored=True).ok
    if kind is not truncated:
        assert tamper(rewrite).ok == (at == 27)


def test_truncation_shows_against_a_saved_head(tamper: Callable[..., Report]) -> None:
    assert tamper("DELETE FROM event WHERE seq > 28").ok
    report = tamper("DELETE FROM event WHERE seq > 28", anchored=True)
    assert (report.problems[0].seq, report.problems[0].kind) == (29, "missing")


def test_a_head_of_another_log(tamper: Callable[..., Report]) -> None:
    report = tamper("UPDATE log SET incarnation = 'other'", anchored=True)
    assert "incarnation" in report.problems[0].message


def forge(seq: int) -> Callable[[Path], None]:
    """Change a payload and compute its leaf anew."""

    def forge(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            [row] = select_rows(conn, seq - 1, 1)
            assert isinstance(row, tuple)
            event, salt, _ = row
            header = [getattr(event, f) for f in event.__struct_fields__[:-1]]
            conn.execute(
                "UPDATE event SET data = ?, leaf = ? WHERE seq = ?",
                (b"{}", leaf(header, salt, b"{}"), seq),
            )

    return forge


def test_bytes_flipped_in_the_file_itself(tamper: Callable[..., Report], pristine: Path) -> None:
    """A bad disk: wherever a byte of a row's cell flips, the row is named."""
    image = pristine.read_bytes()
    rng = random.Random(7)
    for seq in (3, 14, 29):
        number = seq - 1 if seq < 11 else seq - 2 if seq < 22 else seq - 3
        needle = b'{"number":%d,' % number
        start = image.index(needle)
        for _ in range(6):
            place = start + rng.randrange(29)

            def flip(path: Path, place: int = place) -> None:
                raw = bytearray(path.read_bytes())
                raw[place] ^= 1 << rng.randrange(8)
                path.write_bytes(raw)

            assert seq in named(tamper(flip))


def test_a_destroyed_page_is_reported(tamper: Callable[..., Report], pristine: Path) -> None:
    place = pristine.read_bytes().index(b'{"number":3,') // 4096 * 4096

    def destroy(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[place : place + 4096] = bytes(4096)
        path.write_bytes(raw)

    report = tamper(destroy)
    assert not report.ok
    assert any(problem.kind in ("unreadable", "missing") for problem in report.problems)

"""A page of a SQLite log read at once is what reading it row by row gives."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.events import sqlite_page
from app.events.migrate import apply
from app.events.migration import migrations
from app.events.sqlite_sql import select_events

INSERT = """
    INSERT INTO event (seq, stream_id, version, type_id, schema, time, actor, request, run, cause,
                       data, salt, leaf)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, x'00', x'00')"""

_text = st.sampled_from(["", "a", "ünï 🜚", "\1", "\0", "x\0y", "null", '"', ",", "user:a"])
_row = st.tuples(
    st.integers(1, 3),  # stream
    st.integers(1, 2),  # type
    st.integers(1, 3),
    st.integers(-(2**63), 2**63 - 1),
    _text,
    st.none() | _text,
    st.none() | _text,
    st.none() | _text,
    st.sampled_from([b"{}", b'{"a":"\xc3\xbc"}', b"", b"\0", b"\1", b"\xff", b"[1,2]"]),
)
#: Rows by their place in the log; None: it is archived.
_log = st.lists(st.none() | _row, max_size=12)
_plain = st.tuples(*([st.just(1)] * 4), *([st.sampled_from(["a", "b"])] * 4), st.just(b"{}"))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read pages of any size at once."""
    monkeypatch.setattr(sqlite_page, "MANY", 1)


@pytest.fixture(scope="module")
def conn() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        apply(conn, migrations("sqlite"))
        for number in (1, 2, 3):
            name = f"t/{number}" if number < 3 else "t/3\0ü"
            conn.execute("INSERT INTO stream (id, name) VALUES (?, ?)", (number, name))
            conn.execute("INSERT INTO event_type (id, name) VALUES (?, ?)", (number, f"a.{number}"))
        yield conn


def fill(conn: sqlite3.Connection, log: list[tuple[Any, ...] | None]) -> None:
    conn.execute("DELETE FROM event")
    for seq, row in enumerate(log, 1):
        if row is not None:
            stream, type, *rest = row
            conn.execute(INSERT, (seq, stream, seq, type, *rest))


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(_log, st.lists(st.none() | _plain, max_size=12)),
    st.integers(-1, 13),
    st.integers(0, 14),
    st.integers(1, 14),
)
def test_a_page_is_what_its_rows_are(
    conn: sqlite3.Connection,
    log: list[tuple[Any, ...] | None],
    after: int,
    until: int,
    limit: int,
) -> None:
    fill(conn, log)
    singly = select_events(conn, after, until, None, None, limit)
    assert sqlite_page.select(conn, after, until, None, None, limit) == singly


def test_a_page_is_read_in_one_step(conn: sqlite3.Connection) -> None:
    row = (1, 1, 1, 5, "user:a", "q", None, "c", b'{"text":"one\\u0000 two"}')
    fill(conn, [row, None, row, row])
    statements: list[str] = []
    conn.set_trace_callback(statements.append)
    events = sqlite_page.select(conn, 2, 9, None, None, 2)
    assert [event.seq for event in events] == [3, 4]
    assert len(statements) == 1 and "group_concat" in statements[0]
    sqlite_page.select(conn, 0, 4, None, None, 3)  # past the hole
    assert len(statements) == 3
    conn.set_trace_callback(None)


def test_what_is_wrong_with_a_row_is_told(conn: sqlite3.Connection) -> None:
    """Text that is none raises what it raises when rows are read one by one."""
    row = (1, 1, 1, 5, "user:a", None, None, None, b"{}")
    fill(conn, [row, row])
    conn.execute("UPDATE event SET actor = CAST(x'ff' AS TEXT) WHERE seq = 2")
    for select in (select_events, sqlite_page.select):
        with pytest.raises(sqlite3.OperationalError, match="UTF-8"):
            select(conn, 0, 2, None, None, 2)

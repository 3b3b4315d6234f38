"""Words for Postgres are the words that FTS5 sees."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.projections import words

ALPHABET = (
    "abcXYZ019 _-.,:'\"\\&|!<>()*\t\n@/"
    "äÖßéñçåøłŁĐİıſ"
    "e\u0301o\u0308a\u030a\u0300"
    "αΩάςΣ жЖйЙё"
    "日本語かがカ゚한국어"
    "שלום عربى हिन्दी ไทย"
    "①²½٣Ⅷ€😀–…\u00a0\u200b\ufffd\ue000"
)


@pytest.fixture(scope="module")
def fts() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "CREATE VIRTUAL TABLE t USING fts5(x, tokenize='unicode61 remove_diacritics 2')"
    )
    connection.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, instance)")
    return connection


@settings(max_examples=2000, deadline=None)
@given(text=st.text(ALPHABET, max_size=40))
def test_words_are_those_of_fts5(fts: sqlite3.Connection, text: str) -> None:
    fts.execute("DELETE FROM t")
    fts.execute("INSERT INTO t (x) VALUES (?)", (text,))
    seen = [word for (word,) in fts.execute("SELECT term FROM v ORDER BY offset")]
    assert words.split(text) == seen


def test_a_query_has_only_words() -> None:
    assert words.tsquery("say 'no' OR -x col:y a-b") == (
        "('say':*) & ('no':*) & ('or':*) & ('x':*) & ('col' <-> 'y':*) & ('a' <-> 'b':*)"
    )
    assert words.tsquery("-- * ( \0") is None
    assert words.tsquery("x" * 10_000) == f"('{'x' * words.LONGEST}':*)"


def test_places() -> None:
    assert words.tsvector("to be, or not to be") == "to:1,5 be:2,6 or:3 not:4"
    assert words.tsvector("?!") == ""


def test_texts_of_any_size_stay_within_what_postgres_takes() -> None:
    many = words.tsvector(" ".join(f"word{n}" for n in range(300_000)))
    assert len(many) < 4_000_000 and many.startswith("word0:1 word1:2")
    assert words.tsvector("same " * 100_000).count(",") == words.POSITIONS - 1

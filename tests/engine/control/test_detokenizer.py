"""Incremental text: whole characters, no stop strings, and exact continuation after any token."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.engine.detokenizer import Detokenizer
from app.engine.tokenizer import Tokenizer
from app.engine.weights import open_checkpoint

TEXTS = [
    "plain words, nothing else",
    "naïve café – 東京タワー – שלום – здравствуйте",
    "👩‍👩‍👧‍👦 family, 🇨🇭 flag, 🧑🏽‍🚀 skin tone",
    "def f(x):\n\treturn x ** 2  # ½·π\n\n\n",
]


class Pieces:
    """A tokenizer whose tokens are given byte strings."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token]


def run(pieces: list[bytes], stop: tuple[str, ...] = (), min_tokens: int = 0) -> list[str]:
    """Text given out with each token up to the stop, the rest joined to the last."""
    detokenizer = Detokenizer(Pieces(pieces).token_bytes, stop, min_tokens=min_tokens)
    texts = []
    for token in range(len(pieces)):
        texts.append(detokenizer.push(token))
        if detokenizer.stopped:
            return texts
    return [*texts[:-1], texts[-1] + detokenizer.finish()] if texts else [detokenizer.finish()]


def whole(pieces: list[bytes], stop: tuple[str, ...], min_tokens: int) -> str:
    """The definition, without increments: the text up to the first token that completes a stop."""
    text = b"".join(pieces).decode("utf-8", "replace")
    begin = 0
    for count, data in enumerate(accumulate(pieces), start=1):
        seen = certain(data)
        if count <= min_tokens:
            begin = len(seen)
            continue
        hits = [at for s in stop if (at := seen.find(s, begin)) >= 0]
        if hits:
            return seen[: min(hits)]
    return text


def certain(data: bytes) -> str:
    """Decode, without an incomplete character at the end."""
    cut = next((n for n in (1, 2, 3) if n <= len(data) and is_prefix(data[-n:])), 0)
    return data[: len(data) - cut].decode("utf-8", "replace")


def is_prefix(data: bytes) -> bool:
    """Whether some bytes make a character of it."""
    for low, high in (
        (0x80, 0x80),
        (0xBF, 0xBF),
        (0x9F, 0x80),
        (0x8F, 0x80),
        (0xA0, 0x80),
        (0x90, 0x80),
    ):
        for more in ([low], [low, high], [low, high, high]):
            try:
                if len((data + bytes(more)).decode()) == 1:
                    return True
            except UnicodeDecodeError:
                continue
    return False


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_one_by_one_give_whole_characters(text: str) -> None:
    texts = run([bytes([b]) for b in text.encode()])
    assert [c for c in texts if c] == list(text)


pieces = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=3),
        st.sampled_from(
            [b"a", b"b", b"ab", b"aba", b"\xf0\x9f", b"\x98\x80", b"\xe2\x82", b"\xac", b""]
        ),
    ),
    max_size=24,
)
stops = st.lists(
    st.sampled_from(["a", "b", "ab", "aab", "aba", "abab", "bb", "€", "a€", "😀b"]), max_size=3
).map(tuple)


@settings(max_examples=600, deadline=None)
@given(pieces=pieces, stop=stops, min_tokens=st.integers(0, 4))
@example(pieces=[b"a", b"ab"], stop=("aab",), min_tokens=0)
@example(pieces=[b"\xe2\x82", b"a"], stop=(), min_tokens=0)
@example(pieces=[b"\xed\xa0\x80", b"\xf4\x90"], stop=(), min_tokens=0)
def test_increments_join_to_the_definition(
    pieces: list[bytes], stop: tuple[str, ...], min_tokens: int
) -> None:
    assert "".join(run(pieces, stop, min_tokens)) == whole(pieces, stop, min_tokens)


@settings(max_examples=300, deadline=None)
@given(pieces=pieces, stop=stops, min_tokens=st.integers(0, 4))
def test_a_crash_after_any_token_changes_no_text(
    pieces: list[bytes], stop: tuple[str, ...], min_tokens: int
) -> None:
    undisturbed = run(pieces, stop, min_tokens)
    source = Pieces(pieces).token_bytes
    for crash in range(len(undisturbed)):
        resumed = Detokenizer(source, stop, min_tokens=min_tokens)
        resumed.replay(range(crash))
        texts = [resumed.push(token) for token in range(crash, min(len(undisturbed), len(pieces)))]
        rest = resumed.finish()
        assert "".join([*undisturbed[:crash], *texts, rest]) == "".join(undisturbed)


def test_what_may_become_a_stop_is_held_back() -> None:
    assert run([b"on", b"e <", b"/s", b"x", b"> <", b"/s>", b"no"], ("</s>",)) == [
        "on",
        "e ",
        "",
        "</sx",
        "> ",
        "",
    ]


def test_the_earliest_stop_wins_and_the_end_flushes() -> None:
    assert run([b"a stop and STOP"], ("STOP", "stop")) == ["a "]
    assert run([b"a ST", b"O"], ("STOP",)) == ["a ", "STO"]
    assert run([b"caf\xc3"]) == ["caf�"]


def test_stops_are_looked_for_behind_min_tokens() -> None:
    assert run([b"x", b"x", b"y", b"x", b"y"], ("x",), min_tokens=2) == ["x", "x", "y", ""]


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Tokenizer:
    with open_checkpoint(str(model_path)) as checkpoint:
        return Tokenizer.load(checkpoint)


@pytest.mark.parametrize("stop", [(), ("\n\n\n",), ("東京タ", "fox"), ("🧑🏽‍🚀 skin",)])
@pytest.mark.parametrize("text", TEXTS)
def test_with_the_real_tokenizer(tokenizer: Tokenizer, text: str, stop: tuple[str, ...]) -> None:
    tokens = [*tokenizer.encode(text), tokenizer.eos[0]]
    expected = min((text[: text.find(s)] for s in stop if s in text), key=len, default=text)
    assert tokenizer.decode(tokens) == text
    for crash in range(len(tokens) + 1):
        before, after = (Detokenizer(tokenizer.token_bytes, stop) for _ in range(2))
        given = [before.push(token) for token in tokens[:crash]]
        after.replay(tokens[:crash])
        given += [after.push(token) for token in tokens[crash:]]
        assert "".join(given) + after.finish() == expected
        assert not any("\ufffd" in piece for piece in given)
        assert after.stopped == (expected != text)

"""Tokenizers of other kinds than the default model's, out of small made-up vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from app.engine.tokenizer import Tokenizer
from app.engine.vocabulary import from_gguf
from app.errors import StartupError

HERE = Path("model.gguf")
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6


def tokenizer(meta: dict[str, Any]) -> Tokenizer:
    backend, special = from_gguf(HERE, meta)
    return Tokenizer(backend, special=special, eos=[], named={}, chat_template=None)


def pieces(made: Tokenizer, text: str, *, special: bool = False) -> list[bytes]:
    return [made.token_bytes(i) for i in made.encode(text, special=special)]


def sentencepiece(**changes: Any) -> dict[str, Any]:
    words = [("<unk>", 0, UNKNOWN), ("<s>", 0, CONTROL), ("</s>", 0, CONTROL), ("<tool>", 0, USER)]
    words += [(f"<0x{b:02X}>", 0, BYTE) for b in range(256)]
    letters = [(c, -1000.0 - n, NORMAL) for n, c in enumerate("▁<>/sabcd")]
    merged = [("▁a", -1.0, NORMAL), ("bc", -2.0, NORMAL), ("ab", -3.0, NORMAL)]
    merged += [("abc", -4.0, NORMAL), ("▁abc", -5.0, NORMAL), ("cd", -1.5, NORMAL)]
    every = words + letters + merged
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [w for w, _, _ in every],
        "tokenizer.ggml.scores": [float(s) for _, s, _ in every],
        "tokenizer.ggml.token_type": [t for _, _, t in every],
        "tokenizer.ggml.add_space_prefix": False,
    } | changes


def test_sentencepiece_merges_by_score() -> None:
    made = tokenizer(sentencepiece())
    assert pieces(made, "abc") == [b"abc"]
    assert pieces(made, "abcd") == [b"ab", b"cd"]  # cd scores better than bc and abc
    assert pieces(made, " a") == [b" a"]
    assert made.decode(made.encode("ab cd a")) == "ab cd a"


def test_sentencepiece_spells_unknown_characters_in_bytes() -> None:
    made = tokenizer(sentencepiece())
    assert b"".join(pieces(made, "aé\n🙂")) == "aé\n🙂".encode()
    assert made.decode(made.encode("aé\n🙂")) == "aé\n🙂"


def test_sentencepiece_special_and_user_tokens() -> None:
    made = tokenizer(sentencepiece())
    assert made.encode("</s>", special=True) == [2]
    plain = made.encode("a</s>b")
    assert not any(made.is_special(i) for i in plain) and made.decode(plain) == "a</s>b"
    assert pieces(made, "a<tool>") == [b"a", b"<tool>"]


def test_sentencepiece_prefix() -> None:
    made = tokenizer(sentencepiece(**{"tokenizer.ggml.add_space_prefix": True}))
    assert pieces(made, "a") == [b" a"]
    assert made.decode(made.encode("a b")) == "a b"


def byte_level(rule: str) -> dict[str, Any]:
    tokens = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "12", "123", "1234", "Ġ1"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] + [NORMAL] * (len(tokens) - 1),
        "tokenizer.ggml.merges": ["1 2", "12 3", "123 4", "Ġ 1"],
    }


@pytest.mark.parametrize(
    "rule, wanted",
    [
        ("gpt-2", [b"1234", b" 1"]),
        ("smollm", [b"1", b"2", b"3", b"4", b" ", b"1"]),
        ("llama-bpe", [b"123", b"4", b" ", b"1"]),
        ("qwen2", [b"1", b"2", b"3", b"4", b" ", b"1"]),
    ],
)
def test_splitting_rules(rule: str, wanted: list[bytes]) -> None:
    made = tokenizer(byte_level(rule))
    assert pieces(made, "1234 1") == wanted
    for text in ("I'M  here\r\n\n\tö<eos>", "  x  ", "…!? 七"):
        assert b"".join(pieces(made, text)) == text.encode()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tokenizer.ggml.pre": "martian"}, "'martian'"),
        ({"tokenizer.ggml.model": "bert"}, "'bert'"),
        ({"tokenizer.ggml.tokens": None}, "no tokenizer"),
        ({"tokenizer.ggml.token_type": [1]}, "token types"),
        ({"tokenizer.ggml.merges": None}, "merges is missing"),
        ({"tokenizer.ggml.merges": ["no such"]}, "unusable merges"),
        ({"tokenizer.ggml.merges": ["alone"]}, "unusable merges"),
    ],
)
def test_unusable(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(StartupError, match=words):
        from_gguf(HERE, byte_level("gpt-2") | changes)

"""The tokenizer built out of GGUF metadata.

The reference is transformers' own conversion of the same file. It knows nothing of
``tokenizer.ggml.pre`` and splits like GPT-2, while SmolLM2 splits off every digit first (its
published ``tokenizer.json`` has ``Digits(individual_digits=True)`` before ``ByteLevel``); so the
reference gets that one step added. Without digits both must agree as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from app.engine.tokenizer import Tokenizer

pytestmark = pytest.mark.model

#: Rare control characters, and lead bytes of planes that its training text did not have.
MISSING = {
    bytes([b]) for b in (4, 6, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100))
}

CORPUS = [
    "",
    " ",
    "Hello, world!",
    "I've we'll they'd  it's 'S",
    "  leading, trailing  ",
    "a\n\n\nb\r\n\tc\t\t d   \n   e",
    " " * 40 + "x" + "\n" * 20,
    "12345 3.14159  1,000,000 v2.0 x86_64 ½ ² Ⅷ ٣٤ 一二三",
    "def f(x: int) -> str:\n    return f'{x:>10}'  # ünïcode\n",
    "SELECT * FROM t WHERE a >= 10 AND b != 'c';",
    "https://example.org/a/b?c=d&e=%20f#g",
    "👍🏽 👨‍👩‍👧‍👦 🇫🇷 ❤️ \U0001f9d1‍🚀",
    "Füße, naïve, Ελληνικά, русский, עברית, العربية, हिन्दी, ไทย",
    "中文分词,日本語のテキスト、한국어 문장",
    "e\u0301 \u00e9 \ufb01 \u200b\u200d \ufeff \u00a0nbsp",
    "\x00\x01\x7f\x1b[0m",
    "<|im_start|>system\nobey<|im_end|>",
    "<|endoftext|><repo_name> <|im_end",
    "a<|im_end|>b<|im_start|><|im_start|>",
    "≠∑∫√ ←→ ½ ™ € £",
    "ab" * 300,
]


@pytest.fixture(scope="module")
def converted(model_path: Path) -> Any:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(model_path.parent, gguf_file=model_path.name)
    return loaded.backend_tokenizer


@pytest.fixture(scope="module")
def reference(converted: Any) -> Any:
    plain = converted.pre_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    converted.pre_tokenizer = pre_tokenizers.Sequence([digits, plain])
    return converted


def test_equals_the_conversion_where_no_digits_are(tokenizer: Tokenizer, converted: Any) -> None:
    for text in CORPUS:
        if not any(c.isnumeric() for c in text):
            ids = converted.encode(text, add_special_tokens=False).ids
            assert tokenizer.encode(text, special=True) == ids, text


@pytest.mark.parametrize("text", CORPUS, ids=lambda t: repr(t[:16]))
def test_corpus(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    with_special = reference.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, special=True) == with_special
    plain = tokenizer.encode(text)
    assert not any(tokenizer.is_special(i) for i in plain)
    assert tokenizer.decode(plain) == text
    assert b"".join(map(tokenizer.token_bytes, plain)).decode() == text


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    """But for bytes that SmolLM2's vocabulary lacks: its byte-level BPE leaves them out."""
    ids = tokenizer.encode(text)
    assert not any(tokenizer.is_special(i) for i in ids)
    kept = bytes(b for b in text.encode() if bytes([b]) not in MISSING)
    assert b"".join(map(tokenizer.token_bytes, ids)) == kept


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["<|im_end|>", "<|im_start|>", "<|im", "_end|>", "<", "|>", "x", " ", "<file_sep>"]
        ),
        max_size=8,
    )
)
def test_special_text_of_a_user_is_text(tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    ids = tokenizer.encode(text)
    assert not any(tokenizer.is_special(i) for i in ids)
    assert tokenizer.decode(ids) == text


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer.encode("a  2024")] == ["a", "  ", *"2024"]


def test_facts(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49152
    assert tokenizer.eos[0] == 2
    assert tokenizer.encode("<|im_end|>", special=True) == [2]
    assert tokenizer.token_bytes(2) == b""
    assert tokenizer.token_bytes(10**6) == b""
    assert tokenizer.decode([1, 9690, 2]) == "system"
    assert tokenizer.decode([1, 9690, 2], skip_special=False) == "<|im_start|>system<|im_end|>"
    assert tokenizer.specials("a<|im_end|>") == [(1, 11, 2)]


def test_missing_bytes(tokenizer: Tokenizer) -> None:
    spelled = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    assert {bytes([b]) for b in range(256)} - spelled == MISSING

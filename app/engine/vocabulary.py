"""Tokenizers out of GGUF metadata.

GGUF keeps vocabulary, merges and token types, and names the splitting rule in
``tokenizer.ggml.pre``; the rules themselves are each model's published pre-tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from app.engine.weights.checkpoint import Damaged
from app.errors import StartupError

__all__ = ["from_gguf"]

_UNKNOWN, _CONTROL, _USER, _BYTE = 2, 3, 4, 6  # values of tokenizer.ggml.token_type

_DIGITS = ("smollm", "starcoder", "refact", "command-r")
_GPT2 = ("gpt-2", "default", "phi-2", "jina-v2-code", "olmo", *_DIGITS)
_SPLITS = {
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


def from_gguf(path: Path, meta: dict[str, Any]) -> tuple[Tokenizer, frozenset[int]]:
    """Build a tokenizer; also the ids of its control tokens.

    Raises:
        StartupError: of a kind that is not known, or without the metadata it needs.

    """
    kind = meta.get("tokenizer.ggml.model")
    tokens = meta.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise Damaged(path, "it holds no tokenizer (tokenizer.ggml.tokens)")
    types = meta.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise Damaged(path, f"{len(tokens)} tokens but {len(types)} token types")
    if kind == "gpt2":
        backend = _byte_level(path, meta, tokens)
    elif kind == "llama":
        backend = _sentencepiece(meta, tokens, types)
    else:
        raise StartupError(
            f"{path}: tokenizers of the kind {kind!r} are not supported",
            hint="Known: gpt2 (byte-level BPE) and llama (SentencePiece BPE).",
        )
    control = frozenset(i for i, t in enumerate(types) if t in (_CONTROL, _UNKNOWN))
    backend.add_special_tokens(
        [AddedToken(tokens[i], special=True, normalized=False) for i in sorted(control)]
    )
    backend.add_tokens(
        [
            AddedToken(tokens[i], special=False, normalized=False)
            for i, t in enumerate(types)
            if t == _USER
        ]
    )
    return backend, control


def _byte_level(path: Path, meta: dict[str, Any], tokens: list[str]) -> Tokenizer:
    merges = meta.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise Damaged(path, "tokenizer.ggml.merges is missing")
    pairs = [tuple(m.split(" ", 1)) for m in merges]
    rule = meta.get("tokenizer.ggml.pre", "default")
    try:
        model = BPE({t: i for i, t in enumerate(tokens)}, pairs, ignore_merges=rule == "llama-bpe")
    except Exception as error:  # the library raises plain Exception
        raise Damaged(path, f"unusable merges: {error}") from None
    backend = Tokenizer(model)
    if rule in _GPT2:
        split: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        if rule in _DIGITS:
            split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
    elif rule in _SPLITS:
        split = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLITS[rule]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        raise StartupError(
            f"{path}: the splitting rule {rule!r} (tokenizer.ggml.pre) is not supported",
            hint=f"Known: {', '.join((*_GPT2, *_SPLITS))}. Or use the model's folder with "
            "tokenizer.json.",
        )
    if rule == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(meta: dict[str, Any], tokens: list[str], types: list[int]) -> Tokenizer:
    """SentencePiece BPE merges the pair whose joined token has the best score."""
    scores = meta.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    plain = {t: i for i, t in enumerate(tokens) if types[i] not in (_CONTROL, _UNKNOWN, _BYTE)}
    ranked: list[tuple[float, int, int, str, str]] = []
    for text, index in plain.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in plain and right in plain:
                ranked.append((-scores[index], plain[left], plain[right], left, right))
    ranked.sort()
    unknown = next((tokens[i] for i, t in enumerate(types) if t == _UNKNOWN), None)
    model = BPE(
        {t: i for i, t in enumerate(tokens)},
        [(left, right) for *_, left, right in ranked],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    if meta.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend("▁"))
    backend.normalizer = normalizers.Sequence(steps)
    decoder: list[Any] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if meta.get("tokenizer.ggml.add_space_prefix", True):
        decoder.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(decoder)
    return backend

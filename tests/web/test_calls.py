"""The page and the API find the same calls in what a model writes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from app.transport.openai import calls

PIECES = [
    *("<tool_call>", "</tool_call>", "<tool", "<|python_tag|>", "Hello", "é😀", " ", "\n"),
    *("[", "]", ", ", "; ", "{", "}", '"', "[]"),
    '<tool_call>\n{"name": "look", "arguments": {"a": [1, "}\\""]}}\n</tool_call>',
    '{"name": "look"}',
    '{"name": "look", "parameters": null}',
    '{"name": "look", "arguments": "{\\"b\\": 2}"}',
    '{"name": "time", "parameters": {"z": null}}',
    '{"name": "other", "arguments": {}}',
]


def case(seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    return {
        "text": "".join(draw.choice(PIECES) for _ in range(draw.randint(0, 7))),
        "tools": draw.choice([["look", "time"], ["look"], []]),
        "forced": draw.random() < 0.3,
        "model": draw.choice(["SmolLM2-135M", "Llama-3.2-1B"]),
    }


def expected(given: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """What the API's parser finds, whatever pieces the text comes in."""
    parser = calls.parser(frozenset(given["tools"]), forced=given["forced"], model=given["model"])
    text, found = given["text"], []
    while text:
        size = draw.randint(1, 9)
        found += parser.push(text[:size])
        text = text[size:]
    found += parser.finish()
    called = [delta for delta in found if not isinstance(delta, str)]
    return {
        "text": "".join(delta for delta in found if isinstance(delta, str)),
        "calls": [{"name": c.name, "arguments": json.loads(c.arguments)} for c in called],
        "calling": False,
    }


def test_same_calls(npm: Callable[..., str]) -> None:
    cases = [case(seed) for seed in range(1500)]
    output = npm("run", "--silent", "calls", stdin=json.dumps(cases))
    for seed, (given, read) in enumerate(zip(cases, json.loads(output), strict=True)):
        growing = read.pop("growing")
        assert read == expected(given, random.Random(seed)), (seed, given)
        # What was shown once stays: nothing is taken back but for a call.
        assert all(read["text"].startswith(text) for text in growing), (seed, given, growing)

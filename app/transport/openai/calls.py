"""Tool calls in an answer's text. Pure: text goes in piece by piece, deltas come out.

Three spellings, by model family: `Tagged` (Hermes, Qwen, SmolLM2: JSON between ``<tool_call>``
tags, among text), `Bare` (Llama 3: the whole answer is a JSON object, or several), and `Forced`
(the answer was held to a schema: an object, or an array of them). What looks like a call and is
none, or calls a tool that was not offered, is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

__all__ = ["Bare", "Called", "Delta", "Forced", "Parser", "Plain", "Tagged", "call_id", "parser"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
PYTHON = "<|python_tag|>"
_LLAMA = re.compile(r"llama[-_ ]?3", re.IGNORECASE)


class Called(msgspec.Struct, frozen=True):
    """A tool is called; ``arguments`` is a JSON object in a string."""

    name: str
    arguments: str


Delta = str | Called
"""Text of the answer, or a call."""


class Parser(Protocol):
    """Takes text apart as it comes."""

    def push(self, text: str) -> list[Delta]:
        """What is certain after this piece."""
        ...

    def finish(self) -> list[Delta]:
        """What is left at the end of the text."""
        ...


class Plain:
    """No tools: all is text."""

    def push(self, text: str) -> list[Delta]:
        """All of it."""
        return [text] if text else []

    def finish(self) -> list[Delta]:
        """Nothing."""
        return []


class Tagged:
    """Calls between tags. Text that may be the beginning of a tag is held back.

    White space between calls, and before the first one, is not part of the answer.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._held = ""
        self._inside = False
        self._called = False

    def push(self, text: str) -> list[Delta]:
        """What is certain after this piece."""
        self._held += text
        found: list[Delta] = []
        while self._step(found):
            pass
        return found

    def finish(self) -> list[Delta]:
        """The rest; a call that was not closed counts if it is whole."""
        held, self._held = self._held, ""
        if not self._inside:
            return [] if self._called and not held.strip() else _text(held)
        calls = _read(held, self._names)
        return calls or _text(OPEN + held)

    def _step(self, found: list[Delta]) -> bool:
        """Take one part off what is held; False if none is certain."""
        if self._inside:
            body, closed, rest = self._held.partition(CLOSE)
            if not closed:
                return False
            calls = _read(body, self._names)
            self._called = self._called or bool(calls)
            found += calls or _text(OPEN + body + CLOSE)
            self._held, self._inside = rest, False
            return True
        before, opened, rest = self._held.partition(OPEN)
        if opened:
            self._say(before.rstrip(), found)
            self._held, self._inside = rest, True
            return True
        certain = len(self._held) - _overlap(self._held, OPEN)
        certain = len(self._held[:certain].rstrip())  # white space may stand before a call
        self._say(self._held[:certain], found)
        self._held = self._held[certain:]
        return False

    def _say(self, text: str, found: list[Delta]) -> None:
        if text and not (self._called and not text.strip()):
            found.append(text)


class Bare:
    """The whole answer is calls, or none of it: decided by its first character."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._held = ""
        self._plain = False

    def push(self, text: str) -> list[Delta]:
        """What is certain after this piece."""
        if self._plain:
            return _text(text)
        self._held += text
        start = self._held.lstrip()
        if not start or start[0] == "{" or PYTHON.startswith(start[: len(PYTHON)]):
            return []
        self._plain = True
        held, self._held = self._held, ""
        return _text(held)

    def finish(self) -> list[Delta]:
        """The calls; all of it as text if it was none."""
        held, self._held = self._held, ""
        return _read(held.replace(PYTHON, "", 1), self._names) or _text(held)


class Forced:
    """The answer was held to `app.transport.openai.tools.schema`."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._held = ""

    def push(self, text: str) -> list[Delta]:
        """Nothing before the end."""
        self._held += text
        return []

    def finish(self) -> list[Delta]:
        """The calls; as text what was cut off."""
        held, self._held = self._held, ""
        return _read(held, self._names) or _text(held)


def parser(names: frozenset[str], *, forced: bool, model: str | None) -> Parser:
    """The parser for a model's answers. ``names`` are the tools on offer; none: all is text."""
    if not names:
        return Plain()
    if forced:
        return Forced(names)
    make: Callable[[frozenset[str]], Parser] = Bare if _LLAMA.search(model or "") else Tagged
    return make(names)


def call_id(request: str, index: int) -> str:
    """Id of a call: always the same for the same request, so that it can be found again."""
    return f"call_{request.replace('-', '')}{index}"


def _text(text: str) -> list[Delta]:
    return [text] if text else []


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``tag``."""
    sizes = range(min(len(text), len(tag) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(tag[:size])), 0)


def _read(text: str, names: frozenset[str]) -> list[Delta]:
    """Calls in a text that is nothing else: JSON objects, an array of them, or several in a row."""
    decoder, at = json.JSONDecoder(), 0
    values: list[Any] = []
    while at < len(text):
        if text[at].isspace() or (values and text[at] in ";,"):
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        values += value if isinstance(value, list) else [value]
    calls = [_called(value, names) for value in values]
    return [call for call in calls if call is not None] if all(calls) else []


def _called(value: Any, names: frozenset[str]) -> Called | None:
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    given = value.get("arguments", value.get("parameters", {}))
    if isinstance(given, str):  # some models write what the protocol has: JSON in a string
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or name not in names or not isinstance(given, dict):
        return None
    text = json.dumps(given, ensure_ascii=False)
    return Called(name, text.encode("utf-8", "replace").decode())  # half a character has no bytes

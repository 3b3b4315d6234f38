"""JSON schemas as grammars, and where a schema is wrong.

JSON is written on one line, with a space behind commas and colons as most text has it: a model
cannot lose itself in white space, and much of an answer is known before it is written.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from llguidance import LLMatcher, LLParserLimits

from app.errors import InputError

__all__ = ["check", "grammar", "locate"]

_STYLE: Any = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_LIMITS = LLParserLimits(verbose_errors=False)
_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
"""Formats that are kept to; any other is a remark, as the specification allows."""
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = ("items", "additionalProperties", "additionalItems", "not", "contains", "propertyNames")
_PATIENCE = 0.2  # seconds in which the place of an error is looked for

Part = tuple[str, Any]


def grammar(schema: dict[str, Any] | bool, *, field: str = "schema") -> str:
    """The grammar of a schema.

    Raises:
        InputError: It is nested too deeply, or ``false``.

    """
    if schema is False:
        raise InputError("nothing is valid against false", field=field)
    try:
        text = msgspec.json.encode(_readable(schema) if isinstance(schema, dict) else {}).decode()
        return str(LLMatcher.grammar_from_json_schema(text, defaults=_STYLE))
    except (RecursionError, ValueError) as error:
        deep = isinstance(error, RecursionError) or "recursion" in str(error)
        raise InputError("is nested too deeply" if deep else str(error), field=field) from None


def check(schema: dict[str, Any] | bool, *, field: str = "schema") -> None:
    """Compile a schema.

    Raises:
        InputError: Its field is the place of the error in the schema.

    """
    error = _error(grammar(schema, field=field))
    if error and isinstance(schema, dict):
        raise InputError(_said(error), field=f"{field}{locate(schema, error)}", hint=_hint(error))


def locate(schema: dict[str, Any], error: str) -> str:
    """The innermost part of a schema with the same error, as ``.properties.name``."""
    shared: dict[str, Any] = {n: schema[n] for n in ("$defs", "definitions") if n in schema}
    where, part, until = "", schema, time.monotonic() + _PATIENCE
    while True:
        for name, inner in _parts(part):
            if time.monotonic() > until:
                return where
            if isinstance(inner, bool) or not _has(inner, shared, error):
                continue
            where, part = where + name, inner
            break
        else:
            return where
        if not isinstance(part, dict):
            return where


def _has(part: Any, shared: dict[str, Any], error: str) -> bool:
    """Whether a part of a schema has an error by itself."""
    if not isinstance(part, dict):
        return "must be an object or boolean" in error
    try:
        return _error(grammar({**shared, **part})) == error
    except InputError:
        return False


def _parts(schema: dict[str, Any]) -> Iterator[Part]:
    """Schemas directly inside of a schema, and the way to them. What is malformed is left out."""
    for key in _MAPS:
        value = schema.get(key)
        if isinstance(value, dict):
            yield from ((f".{key}.{name}", inner) for name, inner in value.items())
    for key in _LISTS:
        value = schema.get(key)
        if isinstance(value, list):
            yield from ((f".{key}[{index}]", inner) for index, inner in enumerate(value))
    for key in _SINGLE:
        value = schema.get(key)
        if value is not None and not isinstance(value, list):
            yield f".{key}", value


def _readable(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without formats that nobody can keep to."""
    found = dict(schema)
    kind = found.get("format")
    if isinstance(kind, str) and kind not in _FORMATS:
        del found["format"]
    for key in (*_MAPS, *_LISTS, *_SINGLE):
        value = found.get(key)
        if isinstance(value, list):
            found[key] = [_readable(v) if isinstance(v, dict) else v for v in value]
        elif isinstance(value, dict) and key in _MAPS:
            found[key] = {n: _readable(v) if isinstance(v, dict) else v for n, v in value.items()}
        elif isinstance(value, dict):
            found[key] = _readable(value)
    return found


def _error(text: str) -> str:
    return str(LLMatcher.validate_grammar(text, limits=_LIMITS))


def _said(error: str) -> str:
    """An error in our words where they are clearer."""
    unknown = re.match(r"Unimplemented keys: \[(.*)\]", error)
    if unknown:
        return f"not supported: {unknown[1]}"
    if "coerce_one_of" in error:
        return "more than one alternative of oneOf may be valid at once"
    first, _, rest = error.partition("\n")
    return error if len(rest) <= 300 else first


def _hint(error: str) -> str | None:
    if "coerce_one_of" in error:
        return "Write anyOf, or make the alternatives exclude each other by a const."
    if error.startswith("Unimplemented keys"):
        return "Leave it out, and check the answer for it."
    return None

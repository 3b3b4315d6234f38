"""The reference of event types, ``docs/events.md``: ``python -m app.events.reference``."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec

from app.events.catalogue import CATALOGUE, Entry
from app.events.redaction import KEEP, RULES, Within

__all__ = ["markdown"]

_HEAD = """\
# Event types

Generated from `app/events/catalogue.py` by `python -m app.events.reference`; do not edit.

Every event carries an envelope (`seq`, `stream`, `version`, `type`, `schema`, `time`, `actor`,
`request`, `run`, `cause`) around the payload described here. Payloads are stored as JSON; a field
that has its default is left out, and unknown fields are ignored. Fields are added with a default
only; any other change raises the schema version and brings an upcaster for the old payloads.

The last column says what `everlog redact` puts in a field's place. Where it is empty the field is
no content, and stays; `within` means that the struct's own table says so.
"""


def markdown() -> str:
    """Return the whole page."""
    parts = [_HEAD]
    structs: dict[str, type[msgspec.Struct]] = {}
    family = ""
    for entry in CATALOGUE.values():
        if entry.type.partition(".")[0] != family:
            family = entry.type.partition(".")[0]
            parts.append(f"## {family}\n")
        parts.append(_entry(entry))
        for field in msgspec.structs.fields(entry.payload):
            for struct in _structs(field.type):
                structs[struct.__name__] = struct
    parts.append("## Structs used in payloads\n")
    parts += [_struct(structs[name]) for name in sorted(structs)]
    return "\n".join(parts).replace("``", "`")


def _entry(entry: Entry) -> str:
    title = f"### `{entry.type}`"
    if entry.schema > 1:
        title += f" (schema {entry.schema})"
    return f"{title}\n\n{inspect.getdoc(entry.payload)}\n\n{_table(entry.payload)}"


def _struct(struct: type[msgspec.Struct]) -> str:
    return f"### {struct.__name__}\n\n{inspect.getdoc(struct)}\n\n{_table(struct)}"


def _table(struct: type[msgspec.Struct]) -> str:
    rows = ["| field | type | default | redacted |", "|---|---|---|---|"]
    for field in msgspec.structs.fields(struct):
        cell = _type(field.type).replace("|", "\\|")
        redacted = _redacted(RULES[struct][field.name])
        rows.append(f"| `{field.name}` | {cell} | {_default(field)} | {redacted} |")
    return "\n".join(rows) + "\n"


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    value = field.default
    if value is msgspec.NODEFAULT:
        value = typing.cast(Any, field.default_factory)()
    return f"`{msgspec.json.encode(value).decode()}`"


def _redacted(rule: Any) -> str:
    if rule is KEEP:
        return ""
    if isinstance(rule, Within):
        return "within"
    return f"`{msgspec.json.encode(rule).decode()}`"


def _type(hint: Any) -> str:
    if hint is None or hint is type(None):
        return "null"
    if hint is Any:
        return "any JSON"
    args = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return " | ".join(_type(arg) for arg in args)
    if origin in (list, tuple):
        return f"array of {_type(args[0])}"
    if origin is dict:
        return "object"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return names[hint]


def _structs(hint: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        yield hint
        for field in msgspec.structs.fields(hint):
            yield from _structs(field.type)
    for arg in typing.get_args(hint):
        yield from _structs(arg)


if __name__ == "__main__":
    sys.stdout.write(markdown())

"""``docs/protocol.md`` names every frame, every field, every code, and its examples are frames."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from app.transport import protocol as wire

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
FRAMES: list[type[msgspec.Struct]] = [
    *get_args(wire.ClientFrame),
    *get_args(wire.ServerFrame),
]


def tag(frame: type[msgspec.Struct]) -> str:
    return str(frame.__struct_config__.tag)


def section(name: str) -> str:
    found = re.search(rf"^### `{name}`$(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no section for {name}"
    return found[1]


@pytest.mark.parametrize("frame", FRAMES, ids=tag)
def test_every_frame_is_documented_with_an_example(frame: type[msgspec.Struct]) -> None:
    text = section(tag(frame))
    table = {name for row in re.findall(r"^\| (`.*?) \|", text, re.M) for name in words(row)}
    fields = {field.encode_name for field in msgspec.structs.fields(frame)}
    assert fields <= table, fields - table
    (example,) = re.findall(r"```json\n(.*?)\n```", text, re.DOTALL)
    client = frame in get_args(wire.ClientFrame)
    decoded = wire.decode_client(example) if client else wire.decode_server(example)
    assert type(decoded) is frame
    assert set(json.loads(example)) == fields | {"t"}, "the example shows every field"


def words(row: str) -> list[str]:
    return re.findall(r"`(\w+)`", row)


def test_every_field_of_an_item_is_documented() -> None:
    text = section("events")
    for field in msgspec.structs.fields(wire.Item):
        assert f"`{field.name}`" in text, field.name


def test_what_is_not_supported_yet_is_named() -> None:
    for name in wire.UNSUPPORTED:
        assert f"`{name}`" in TEXT, name


def test_codes_of_refusals_are_documented() -> None:
    codes = re.findall(r"^\| `(\w+)` \| [^|]+ \|$", section("refuse"), re.M)
    assert codes == list(get_args(wire.RefusalCode))


def test_close_codes_are_documented() -> None:
    codes: dict[str, Any] = vars(wire.CloseCode)
    for name, code in codes.items():
        if name.isupper():
            assert re.search(rf"^\| {code} ", TEXT, re.MULTILINE), name

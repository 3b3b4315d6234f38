"""The client's half: the cases that clients in other languages run too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.transport.cursor import ClientCursor
from app.transport.protocol import Events, decode_server

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "conformance" / "client_cursor.json").read_text()
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_client_cursor(case: dict[str, Any]) -> None:
    cursor = ClientCursor(case["cursor"])
    frame = decode_server(json.dumps(case["frame"]))
    assert isinstance(frame, Events)
    assert cursor.events(frame) == case["expect"]
    assert cursor.version == case["cursor_after"]

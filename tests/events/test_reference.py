"""``docs/events.md`` says what the catalogue says."""

from __future__ import annotations

import inspect
from pathlib import Path

import msgspec

from app.events.catalogue import CATALOGUE
from app.events.reference import markdown

PAGE = Path(__file__).parents[2] / "docs/events.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == markdown(), (
        "run: python -m app.events.reference > docs/events.md"
    )


def test_every_type_is_documented() -> None:
    page = markdown()
    for entry in CATALOGUE.values():
        assert f"### `{entry.type}`" in page
        assert inspect.getdoc(entry.payload) != inspect.getdoc(msgspec.Struct)

"""docs/api.md says what is taken, passed over and refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from app.transport.openai.api import Api
from app.transport.openai.chat import ChatBody
from app.transport.openai.completions import CompletionBody
from app.transport.openai.embeddings import MAX_INPUTS, EmbeddingBody
from app.transport.openai.fields import IGNORED, REFUSED, parse
from app.transport.openai.params import Sampling
from app.transport.openai.responses import ResponseBody
from app.transport.openai.routes import routes
from app.transport.openai.tokens import DetokenizeBody, TokenizeBody
from app.transport.openapi import OPERATIONS

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text()


def section(title: str) -> str:
    """Text under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/api.md has no heading {title!r}"
    return found[1]


def named(title: str) -> set[str]:
    """Names in the first column of a section's table."""
    rows = [row.split("|")[1] for row in section(title).splitlines() if row.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


COMMON = set(Sampling.__struct_fields__)


@pytest.mark.parametrize(
    ("title", "body"),
    [("Chat completions", ChatBody), ("Completions", CompletionBody), ("Responses", ResponseBody)],
)
def test_every_field_is_documented(title: str, body: type[msgspec.Struct]) -> None:
    assert named("All that generate") == COMMON
    assert named(title) == set(body.__struct_fields__) - COMMON


def test_fields_of_the_tokenizer_are_documented() -> None:
    fields = {*TokenizeBody.__struct_fields__, *DetokenizeBody.__struct_fields__}
    assert named("Tokenize and detokenize") == fields


def test_fields_of_embeddings_are_documented() -> None:
    assert named("Embeddings") == set(EmbeddingBody.__struct_fields__)
    assert f"{MAX_INPUTS} of them" in section("Embeddings")


@pytest.mark.parametrize(("title", "table"), [("Passed over", IGNORED), ("Refused", REFUSED)])
def test_what_is_not_used_is_documented_with_its_reason(title: str, table: dict[str, str]) -> None:
    for name, reason in table.items():
        assert f"| `{name}` | {reason} |" in section(title)
    assert named(title) == set(table)


def test_every_endpoint_is_documented() -> None:
    source: Any = SimpleNamespace(store=None)
    for route in routes(Api(source)):
        path = route.path.replace(":path", "")
        if path != "/v1/{path}":
            method = "POST" if "POST" in (route.methods or ()) else "GET"
            assert f"`{method} {path}`" in section("Endpoints"), path


def test_what_is_shown_with_curl_is_understood() -> None:
    shown = re.findall(r"^\$ curl (?:-N )?http://127.0.0.1:8000(\S+)(?: -d '(.+)')?$", PAGE, re.M)
    assert len(shown) >= 7
    for url, body in shown:
        path = re.sub(r"conv_\w+", "{id}", url.partition("?")[0])
        operation = OPERATIONS["POST" if body else "GET", path]
        if body:
            assert operation.body is not None
            assert parse(body.encode(), operation.body)[1] == [], url

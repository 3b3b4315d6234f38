"""The documentation names everything that is public."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import app
from app.chat.hooks import HOOKS
from app.chat.sampling import Sampling

DOCS = (Path(__file__).parent.parent.parent / "docs" / "chat.md").read_text()
HEADINGS = "\n".join(line for line in DOCS.splitlines() if line.startswith("#"))


@pytest.mark.parametrize("name", app.__all__)
def test_every_public_name_has_a_heading(name: str) -> None:
    assert re.search(rf"`@?{re.escape(name)}\b", HEADINGS), f"docs/chat.md: no heading for {name}"


def test_every_keyword_of_llm_is_documented() -> None:
    (written,) = re.findall(r"`llm\.chat\(messages, \*, ([^)]*)\)`", DOCS)
    own = inspect.signature(app.llm.chat).parameters.values()
    named = {p.name for p in own if p.kind is p.KEYWORD_ONLY} | set(Sampling.__annotations__)
    assert set(re.split(r",\s+", written)) == named


def test_authors_get_types() -> None:
    assert (Path(app.__file__).parent / "py.typed").exists()


def test_every_hook_is_public() -> None:
    assert set(HOOKS) <= set(app.__all__)


def test_no_heading_is_left_of_a_name_that_is_gone() -> None:
    named = set(re.findall(r"`@?(\w+)", HEADINGS))
    assert named <= set(app.__all__), named - set(app.__all__)


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL))
def test_examples_in_the_documentation_compile(code: str) -> None:
    compile(code, "docs/chat.md", "exec", flags=0x2000)  # PyCF_ALLOW_TOP_LEVEL_AWAIT

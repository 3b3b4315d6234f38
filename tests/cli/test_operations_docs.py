"""The documentation names only commands, options, settings and pages that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from app.cli import everlog
from app.settings import keys
from tests.cli.conftest import ROOT

PAGE = ROOT / "docs" / "operations.md"
TEXT = PAGE.read_text("utf-8")

PAGES = {path: path.read_text("utf-8") for path in (ROOT / "README.md", *PAGE.parent.glob("*.md"))}

_BLOCKS = re.findall(r"```console\n(.*?)```", "\n".join(PAGES.values()), re.DOTALL)
_LINES = [line.strip() for block in _BLOCKS for line in block.splitlines()]
_INLINE = re.findall(r"`(everlog [^`]+)`", TEXT)
COMMANDS = sorted(
    {line.removeprefix("$ ") for line in _LINES if line.startswith("$ everlog")} | set(_INLINE)
)
SECTIONS = {key.split(".")[0] for key in keys()}
SETTINGS = sorted(set(re.findall(rf"`((?:{'|'.join(SECTIONS)})\.[a-z_]+)\b(?!\()", TEXT)))
EVENTS = {"log.redacted", "log.archived", "log.sealed"}
"""Types of events that look like settings."""


def test_it_is_about_something() -> None:
    assert len(COMMANDS) > 20 and len(SETTINGS) > 8


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist(line: str) -> None:
    words = shlex.split(line.split(" > ")[0], comments=True)[1:]
    command: click.Command = everlog
    while isinstance(command, click.Group):
        found = command.commands.get(words[0]) if words else None
        assert found is not None, f"there is no command {' '.join(words[:1])!r}"
        command, words = found, words[1:]
    context = click.Context(command)
    values, rest, _ = command.make_parser(context).parse_args(args=[*words])
    assert not rest or "file" in values, rest


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in EVENTS])
def test_settings_exist(name: str) -> None:
    assert name in keys()


def test_variables_are_settings() -> None:
    names = {f"EVERLOG_{key.replace('.', '__').upper()}" for key in keys()}
    names.add("EVERLOG_CACHE")  # of the machine rather than of the service, so no setting
    assert set(re.findall(r"EVERLOG_\w+", TEXT)) <= names


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL))
def test_examples_are_settings(block: str) -> None:
    import tomllib

    for section, values in tomllib.loads(block).items():
        assert {f"{section}.{name}" for name in values} <= set(keys())


def anchors(text: str) -> set[str]:
    """Names by which GitHub finds the headings of a page."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for target in set(re.findall(r"\]\(([^)\s]+)\)", prose)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(PAGES[there]), target


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_readme_leads_to_every_page(page: Path) -> None:
    assert f"(docs/{page.name})" in PAGES[ROOT / "README.md"]

"""`everlog serve --watch`: edits reach the page without a reload of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.chat import Chat
from tests.support.server import Server, running

pytestmark = [pytest.mark.browser]

HANDLER = """
from app import Message, on_message

@on_message
async def main(message: Message) -> None:
    await Message("{answer}").send()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watch")


@pytest.fixture(scope="module")
def server(built_ui: None, folder: Path) -> Iterator[Server]:
    file = folder / "chat.py"
    file.write_text(HANDLER.format(answer="old"))
    with running(folder / "log.db", str(file), "--no-engine", "--watch") as started:
        yield started


def test_a_syntax_error_is_shown_and_the_old_code_goes_on(
    new_page: Callable[..., Page], folder: Path
) -> None:
    chat = Chat(new_page())
    chat.page.goto("/")
    chat.ask("one")
    assert chat.shown() == "old"
    (folder / "chat.py").write_text(HANDLER.format(answer="new").replace("None:", "None"))
    card = chat.page.locator(".reload")
    expect(card).to_contain_text("chat.py:5: expected ':'")
    chat.ask("two")
    assert chat.shown() == "old"
    (folder / "chat.py").write_text(HANDLER.format(answer="new"))
    expect(card).to_have_count(0)
    chat.ask("three")
    assert chat.shown() == "new"

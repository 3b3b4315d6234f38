"""A server that needs an API key: the page asks for it, once a tab."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.chat import Chat
from tests.e2e.conftest import HANDLERS
from tests.support.server import Server

pytestmark = [pytest.mark.browser]


@pytest.fixture
def locked(built_ui: None, tmp_path: Path) -> Server:
    """A server that needs a key, not started."""
    env = {"EVERLOG_SERVER_AUTH": "required"}
    return Server(tmp_path / "log.db", str(HANDLERS), "--no-engine", env=env)


def command(server: Server, *args: str) -> str:
    """What `everlog keys ...` prints."""
    command = [sys.executable, "-m", "app", "keys", *args]
    database = ["--database", f"sqlite:///{server.database}"]
    done = subprocess.run([*command, *database], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_page_asks_for_a_key(locked: Server, new_page: Callable[..., Page]) -> None:
    locked.start()
    try:
        page = new_page()
        page.goto(locked.url)
        field = page.get_by_label("API key", exact=True)
        expect(field).to_be_visible()
        expect(page.get_by_role("alert")).to_have_count(0)
        field.fill("evl_wrong_key")
        page.get_by_role("button", name="Continue").click()
        expect(page.get_by_role("alert")).to_contain_text("this API key is wrong")
        field.fill(command(locked, "create", "laptop"))
        field.press("Enter")
        chat = Chat(page)
        chat.ask("count 3 20")
        thread = chat.thread
        expect(page.locator("nav, aside").get_by_text("count 3 20").first).to_be_visible()
        page.reload()
        expect(chat.users).to_have_count(1)
        command(locked, "revoke", "laptop")
        expect(page.get_by_role("alert")).to_contain_text("of no use any more")
        field.fill(command(locked, "create", "other", "--scope", "chat"))
        field.press("Enter")
        expect(page.get_by_text("another user's")).to_be_visible()
        assert chat.thread == thread
    finally:
        locked.gone()

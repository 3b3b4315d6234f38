"""The page below a path of a proxy, which takes the path off."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.chat import Chat
from tests.support.below import below
from tests.support.server import Server

pytestmark = [pytest.mark.browser]


def test_a_chat_below_a_path(new_page: Callable[..., Page], server: Server) -> None:
    port = urlsplit(server.url).port
    assert port is not None
    with below("/team/chat", port) as url:
        chat = Chat(new_page())
        page = chat.page
        page.goto(url)
        answer = chat.ask("count 3 1").inner_text()
        expect(page).to_have_url(re.compile(re.escape(url) + "t/[0-9a-f-]{36}$"))
        thread = chat.thread
        page.reload()  # the page of a thread is one folder deeper
        expect(chat.answers.last).to_contain_text(answer.splitlines()[0])
        page.get_by_role("navigation").get_by_role("button", name="New chat").click()
        expect(page).to_have_url(url)
        link = page.locator(f"a[href='/team/chat/t/{thread}']")
        expect(link).to_be_visible()
        link.click()
        expect(page).to_have_url(f"{url}t/{thread}")
        expect(chat.users).to_have_count(1)
        asked = [sys.executable, "-m", "app", "ask", "--url", url.rstrip("/"), "count 2 1"]
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
        assert said.stdout.strip()

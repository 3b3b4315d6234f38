"""With the real model: an answer that is true, and one that survives the death of the server."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.e2e.chat import Chat
from tests.support.server import Server, running

pytestmark = [pytest.mark.browser, pytest.mark.model, pytest.mark.timeout(400)]

#: On two cores that others use as well, a token may take seconds.
PATIENCE = 150_000


@pytest.fixture(scope="module")
def server(built_ui: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The built-in chat with the default model."""
    short = {"EVERLOG_CHAT__MAX_TOKENS": "24"}
    with running(tmp_path_factory.mktemp("model") / "log.db", env=short) as started:
        yield started


def test_the_capital_of_france(chat: Chat) -> None:
    chat.say("What is the capital of France?")
    chat.idle(1, timeout=PATIENCE)
    answer = chat.answers.last
    expect(answer.locator(".md")).to_contain_text("Paris")
    expect(answer.locator(".costs")).to_contain_text("tok/s")


def test_an_answer_goes_on_after_kill_and_restart(chat: Chat, server: Server) -> None:
    chat.say("Write a long story about a lighthouse keeper and the sea.")
    expect(chat.answers).to_have_count(1, timeout=PATIENCE)
    server.kill()
    seen = chat.answers.last.locator(".md").inner_text()
    server.start(timeout=120)
    expect(chat.banner).to_have_count(0)
    chat.idle(1, timeout=PATIENCE)
    after = chat.answers.last.locator(".md").inner_text()
    assert len(after) > len(seen)
    with urllib.request.urlopen(f"{server.url}/api/threads/{chat.thread}", timeout=10) as response:
        messages = json.load(response)["messages"]
    assert [message["status"] for message in messages] == ["done", "done"]
    assert " ".join(messages[-1]["content"].split()) == " ".join(after.split())

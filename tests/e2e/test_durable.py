"""What is shown stands in the log, once: over reloads, crashes, restarts and in several tabs."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.chat import Chat, words
from tests.support.server import Server

pytestmark = [pytest.mark.browser]


def state(server: Server, thread: str) -> Any:
    """The thread as the server folds it."""
    with urllib.request.urlopen(f"{server.url}/api/threads/{thread}", timeout=10) as response:
        return json.load(response)


def test_post_and_stream(chat: Chat) -> None:
    chat.say("count 30 20")
    expect(chat.users).to_have_text(["count 30 20"])
    chat.has_text("w3")
    expect(chat.stop).to_be_visible()
    expect(chat.page).to_have_url(re.compile("/t/[0-9a-f-]{36}$"))
    chat.idle(1)
    assert chat.shown() == words(30)


def test_reload_in_the_middle_of_an_answer(chat: Chat) -> None:
    chat.say("count 60 25")
    chat.has_text("w10")
    chat.page.reload()
    chat.has_text("w10")
    chat.idle(1)
    assert chat.shown() == words(60)
    expect(chat.users).to_have_count(1)


def test_second_tab_stays_in_sync(chat: Chat, new_page: Callable[..., Page]) -> None:
    chat.say("count 60 25")
    chat.has_text("w5")
    other = Chat(new_page())
    other.page.goto(f"/t/{chat.thread}")
    other.idle(1)
    assert other.shown() == words(60)
    other.say("and you?")
    expect(chat.users).to_have_text(["count 60 25", "and you?"])
    chat.idle(2)
    assert chat.shown() == "You said: and you?"


def test_stop_by_key_and_button(chat: Chat) -> None:
    chat.say("count 1000 20")
    chat.has_text("w5")
    chat.page.keyboard.press("Escape")
    chat.idle(1)
    expect(chat.answers.last).to_contain_text("Stopped")
    stopped = chat.shown()
    assert words(1000).startswith(stopped)
    chat.say("count 1000 20")
    chat.has_text("w5")
    chat.stop.click()
    chat.idle(2)
    expect(chat.input).to_be_focused()
    assert chat.answers.first.locator(".md").inner_text().strip() == stopped


def test_kill_and_restart_in_the_middle_of_an_answer(chat: Chat, server: Server) -> None:
    """A handler without a model cannot go on; what it said stays, once, and says why it ends."""
    chat.say("count 1000 20")
    chat.has_text("w15")
    server.kill()
    seen = chat.shown()
    expect(chat.banner).to_contain_text(re.compile(r"Reconnecting… \(try \d+\)"))
    server.start()
    expect(chat.banner).to_have_count(0)
    chat.idle(1)
    after = chat.shown()
    assert after.startswith(seen)
    assert words(1000).startswith(after)
    assert after == state(server, chat.thread)["messages"][-1]["content"].strip()
    expect(chat.page.get_by_role("log")).to_contain_text("Interrupted")
    chat.page.reload()
    expect(chat.answers).to_have_count(1)
    assert chat.shown() == after


def test_messages_sent_while_the_server_is_away_arrive_once(chat: Chat, server: Server) -> None:
    chat.ask("first")
    server.kill()
    chat.say("second")
    chat.say("third")
    expect(chat.page.locator(".pending .bubble")).to_have_text(["second", "third"])
    server.start()
    expect(chat.answers).to_have_count(3)
    chat.idle()
    expect(chat.page.locator(".pending")).to_have_count(0)
    expect(chat.users).to_have_text(["first", "second", "third"])
    posted = [m["content"] for m in state(server, chat.thread)["messages"] if m["role"] == "user"]
    assert posted == ["first", "second", "third"]


def test_a_restart_on_purpose_passes_unnoticed(chat: Chat, server: Server) -> None:
    chat.ask("before")
    assert server.kill(signal.SIGTERM) == 0
    server.start()
    chat.ask("after")
    expect(chat.users).to_have_text(["before", "after"])


def test_drafts_are_kept_for_each_thread(chat: Chat) -> None:
    chat.ask("first thread")
    here = chat.page.url
    chat.input.fill("not sent yet")
    chat.page.get_by_role("button", name="New chat").first.click()
    expect(chat.input).to_have_value("")
    chat.input.fill("another draft")
    chat.page.reload()
    expect(chat.input).to_have_value("another draft")
    chat.page.goto(here)
    expect(chat.input).to_have_value("not sent yet")


def test_rename_search_delete_and_undo(chat: Chat) -> None:
    chat.ask("zebra crossing")
    row = chat.page.locator(".thread.here")
    expect(row).to_contain_text("zebra crossing")
    row.hover()
    row.get_by_label("Rename zebra crossing").click()
    chat.page.get_by_label("Title").fill("Stripes")
    chat.page.keyboard.press("Enter")
    expect(chat.page.get_by_role("heading", level=1)).to_have_text("Stripes")
    search = chat.page.get_by_label("Search chats")
    search.fill("no such thing")
    expect(chat.page.locator(".threads")).to_contain_text("Nothing found.")
    search.fill("stripes")
    expect(row).to_contain_text("Stripes")
    row.hover()
    row.get_by_label("Delete Stripes").click()
    expect(chat.page.locator(".thread")).to_have_count(0)
    chat.page.get_by_role("button", name="Undo").click()
    expect(chat.page.locator(".thread")).to_have_count(1)
    chat.page.locator(".thread").hover()
    chat.page.get_by_label("Delete Stripes").click()
    chat.page.reload()  # leaving the page makes it final
    expect(chat.page.locator(".threads")).to_contain_text(re.compile("listed here|Today"))
    expect(chat.page.get_by_text("Stripes")).to_have_count(0)


def test_chats_are_renamed_and_deleted_by_keyboard(chat: Chat) -> None:
    """The focus stays in the list, and what can be undone stays while somebody is at it."""
    chat.ask("quagga one")
    chat.page.get_by_role("button", name="New chat").first.click()
    chat.ask("quagga two")
    keys, rows = chat.page.keyboard, chat.page.locator(".thread a")
    keys.press("Control+k")
    keys.type("quagga")
    expect(rows).to_have_count(2)
    keys.press("ArrowDown")
    expect(rows.first).to_be_focused()
    keys.press("Tab")
    keys.press("Enter")
    keys.type("Zebra quagga")
    keys.press("Enter")
    expect(rows.first).to_be_focused()
    expect(rows.first).to_have_text("Zebra quagga")
    keys.press("ArrowDown")
    keys.press("Tab")
    keys.press("Tab")
    chat.page.clock.install()
    keys.press("Enter")
    expect(rows).to_have_count(1)
    expect(rows.first).to_be_focused()
    chat.page.get_by_role("button", name="Undo").focus()
    chat.page.clock.fast_forward(20_000)
    keys.press("Enter")
    expect(rows).to_have_count(2)

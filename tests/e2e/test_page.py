"""How things look and how they are used: markdown, steps, keyboard, themes, narrow screens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.chat import Chat

pytestmark = [pytest.mark.browser]

ROOT = Path(__file__).parent.parent.parent
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"


def serious(page: Page) -> list[str]:
    """What axe-core finds that keeps people from using the page."""
    page.evaluate(AXE.read_text())
    found: list[dict[str, Any]] = page.evaluate("axe.run().then((result) => result.violations)")
    return [
        f"{v['id']}: {[node['html'][:120] for node in v['nodes']]}"
        for v in found
        if v["impact"] in {"serious", "critical"}
    ]


def colour(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))


def test_markdown_and_code(chat: Chat) -> None:
    answer = chat.ask("text markdown.md")
    expect(answer.get_by_role("heading", name="Reversing a list")).to_be_visible()
    expect(answer.get_by_role("cell", name="1.2 µs")).to_be_visible()
    expect(answer.locator("ol > li")).to_have_count(3)
    link = answer.get_by_role("link", name="tutorial")
    expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    code = answer.locator(".code").first
    expect(code.locator(".code-lang")).to_have_text("python")
    expect(code.locator(".hljs-keyword").first).to_be_visible()
    code.get_by_role("button", name="Copy code").click()
    expect(code.get_by_role("button", name="Copied")).to_be_visible()
    expect(chat.page.get_by_role("status").filter(has_text="Copied")).to_have_count(1)
    copied = chat.page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("from collections.abc import")
    assert copied.endswith("print(reverse([1, 2, 3]))")


def test_text_looks_the_same_live_and_after_a_reload(chat: Chat) -> None:
    answer = chat.ask("text markdown.md")
    expect(answer.locator(".hljs-keyword").first).to_be_visible()
    expect(answer.locator(".code").last.locator(".hljs-string").first).to_be_visible()
    live = answer.locator(".md").inner_html()
    chat.page.reload()
    expect(answer.locator(".hljs-keyword").first).to_be_visible()
    expect(answer.locator(".code").last.locator(".hljs-string").first).to_be_visible()
    assert answer.locator(".md").inner_html() == live


def test_formulas_are_typeset(chat: Chat) -> None:
    answer = chat.ask(
        r"costs $5 and $6, but $a_1 + b_1$, $\frac{a$ and \[ \color{red} \frac{1}{2} \]"
    )
    expect(answer.locator("math")).to_have_count(2)
    expect(answer.locator("mfrac")).to_have_css("color", "rgb(255, 0, 0)")
    expect(answer).to_contain_text(r"costs $5 and $6, but")
    expect(answer).to_contain_text(r"$\frac{a$")


def test_attacks_are_inert(chat: Chat) -> None:
    requests: list[str] = []
    chat.page.on("request", lambda request: requests.append(request.url))
    text = (Path(__file__).parent / "texts" / "attacks.md").read_text()
    chat.ask(text)
    chat.ask("text attacks.md")
    chat.page.wait_for_timeout(300)
    assert chat.page.evaluate("window.pwned") is None
    body = chat.answers.last.locator(".md")
    for banned in ("script", "iframe", "svg", "style", "form", "input", "img"):
        expect(body.locator(banned)).to_have_count(0)
    hrefs = body.locator("a").evaluate_all("(all) => all.map((link) => link.protocol)")
    assert set(hrefs) == {"https:"}
    handlers = "(all) => all.filter((e) => [...e.attributes].some((a) => /^on|style/.test(a.name)))"
    count = "(all) => " + f"({handlers})(all).length"
    assert chat.page.locator(".log *").evaluate_all(count) == 0
    expect(body).to_contain_text("The end.")
    assert not [url for url in requests if "example" in url]


def test_steps_tree(chat: Chat) -> None:
    chat.ask("steps")
    page = chat.page
    head = page.locator(".activity-head")
    expect(head).to_contain_text("3 steps")
    tree = page.get_by_role("tree")
    if not tree.is_visible():
        head.click()
    items = tree.get_by_role("treeitem")
    expect(items).to_have_count(3)
    items.first.focus()
    page.keyboard.press("ArrowDown")
    expect(items.nth(1)).to_be_focused()
    page.keyboard.press("ArrowRight")
    details = page.locator(".step-details")
    expect(details).to_contain_text('{"found":12}')
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    expect(details.last).to_contain_text("score must be finite")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(items.first).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(items).to_have_count(1)


def test_a_failing_handler_shows_a_card(chat: Chat) -> None:
    chat.say("fail now")
    card = chat.page.locator(".card.bad")
    expect(card).to_contain_text("the weather service did not answer")
    chat.ask("still there?")


def test_keyboard(chat: Chat) -> None:
    page = chat.page
    expect(chat.input).to_be_focused()
    chat.input.press_sequentially("one")
    chat.input.press("Shift+Enter")
    chat.input.press_sequentially("two")
    expect(chat.input).to_have_value("one\ntwo")
    chat.input.press("Enter")
    chat.idle(1)
    expect(chat.users).to_have_text(["one\ntwo"])
    expect(chat.input).to_be_focused()
    chat.input.press("ArrowUp")
    expect(chat.input).to_have_value("one\ntwo")
    page.keyboard.press("Control+k")
    expect(page.get_by_label("Search chats")).to_be_focused()
    page.keyboard.press("Shift+Escape")
    expect(chat.input).to_be_focused()
    page.keyboard.press("Control+/")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("Control+Shift+O")
    expect(chat.users).to_have_count(0)
    expect(page).to_have_url(chat.page.url.split("/t/")[0].rstrip("/") + "/")
    page.go_back()
    expect(chat.users).to_have_count(1)


def test_scrolling_follows_the_end_until_the_reader_leaves(chat: Chat) -> None:
    chat.ask("text markdown.md")
    chat.say("count 1200 4")
    chat.has_text("w300")
    scroller = chat.page.locator(".scroller")
    at_end = "(e) => e.scrollHeight - e.clientHeight - e.scrollTop < 3"
    assert scroller.evaluate(at_end)
    scroller.hover()
    chat.page.mouse.wheel(0, -700)
    chat.page.wait_for_timeout(200)
    top = scroller.evaluate("(e) => e.scrollTop")
    chat.has_text("w500")
    assert abs(scroller.evaluate("(e) => e.scrollTop") - top) < 3
    chat.page.get_by_role("button", name="Go to the end").click()
    chat.has_text("w600")
    assert scroller.evaluate(at_end)
    chat.page.keyboard.press("Escape")
    chat.idle()


def test_feedback_is_kept(chat: Chat) -> None:
    chat.ask("hello")
    good = chat.answers.last.get_by_role("button", name="Good answer")
    good.click()
    expect(good).to_have_attribute("aria-pressed", "true")
    chat.page.wait_for_timeout(300)
    chat.page.reload()
    expect(good).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_in_both_themes(new_page: Callable[..., Page], scheme: str) -> None:
    chat = Chat(new_page(color_scheme=scheme, reduced_motion="reduce"))
    chat.page.goto("/")
    expect(chat.page.get_by_text("What would you like to know?")).to_be_visible()
    assert serious(chat.page) == []
    chat.ask("text markdown.md")
    chat.ask("steps")
    if not chat.page.get_by_role("tree").is_visible():
        chat.page.locator(".activity-head").click()
    chat.page.locator(".step-row").first.click()
    chat.say("fail now")
    expect(chat.page.locator(".card.bad")).to_be_visible()
    assert serious(chat.page) == []
    chat.page.keyboard.press("Control+/")
    assert serious(chat.page) == []


def test_theme_follows_the_system_until_one_is_chosen(new_page: Callable[..., Page]) -> None:
    page = new_page(color_scheme="dark")
    page.goto("/")
    button = page.get_by_role("button", name="Theme")
    dark = colour(page)
    button.click()
    expect(button).to_have_accessible_name("Theme: light")
    light = colour(page)
    assert light != dark
    page.reload()
    expect(button).to_have_accessible_name("Theme: light")
    assert colour(page) == light
    page.emulate_media(color_scheme="light")
    button.click()
    assert colour(page) == dark


def test_narrow_screen(new_page: Callable[..., Page]) -> None:
    chat = Chat(new_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True))
    page = chat.page
    page.goto("/")

    def fits() -> bool:
        return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))

    assert fits()
    chat.input.fill("text markdown.md")
    page.get_by_role("button", name="Send").click()
    chat.idle(1)
    assert fits()
    page.get_by_role("button", name="Show the list of chats").click()
    expect(page.get_by_role("navigation")).to_be_in_viewport()
    assert fits()
    page.get_by_role("navigation").get_by_role("button", name="New chat").click()
    expect(page.get_by_role("navigation")).to_have_count(0)
    expect(chat.users).to_have_count(0)


def test_an_unknown_thread_is_an_empty_one(new_page: Callable[..., Page]) -> None:
    chat = Chat(new_page())
    chat.page.goto("/t/0190aaaa-0000-7000-8000-000000000000")
    expect(chat.page.get_by_text("What would you like to know?")).to_be_visible()

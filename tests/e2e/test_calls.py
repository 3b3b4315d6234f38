"""Conversations of the API on the page: what a model called is seen as that, not as its text."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from app.events import catalogue as c
from app.events.codec import new
from app.events.envelope import thread_stream
from app.events.open import open_store
from app.events.store import Append, Appended, EventStore, Fence
from app.transport.openai.calls import call_id
from tests.e2e.chat import Chat
from tests.e2e.conftest import HANDLERS
from tests.support.server import Server, running

pytestmark = [pytest.mark.browser]

DONE, GOING = "01900000-0000-7000-8000-000000000001", "01900000-0000-7000-8000-000000000002"
REQUEST = "01900000-0001-7000-8000-000000000000"
TOOLS = [{"type": "function", "function": {"name": "weather"}}]
ASKED = "Say first.\n" + "\n".join(
    f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'
    for city in ("Paris", "Oslo")
)


async def says(store: EventStore, thread: str, request: str, text: str, *, over: bool) -> None:
    """A response in a conversation: what a model wrote, to its end or up to now."""
    stream = thread_stream(thread)
    queued = c.RequestQueued(
        request=request, params=c.SamplingParams(), tools=TOOLS, metadata={"endpoint": "responses"}
    )
    begun = [
        new(c.ThreadCreated(owner="local"), actor="user:local"),
        new(c.MessagePosted(message=f"{thread}-q", role="user", content="Weather?"), actor="user"),
        new(c.MessageStarted(message=f"{thread}-a", request=request), actor="user:local"),
        new(queued, actor="user:local", request=request),
    ]
    assert isinstance(await store.append(Append(stream=stream, events=begun)), Appended)
    await store.claim(worker="w", limit=1, lease=1e6)
    made: list[c.Payload] = [
        c.RequestStarted(request=request, epoch=1, model="m", weights="x", prompt_tokens=3),
        c.TokensGenerated(request=request, epoch=1, batch=0, index=0, tokens=[1], text=text),
    ]
    if over:
        ended = {"usage": c.Usage(prompt_tokens=3, completion_tokens=1), "timings": c.Timings()}
        made.append(
            c.RequestFinished(
                request=request, epoch=1, reason="stop", text=text, batches=1, digest="d", **ended
            )
        )
    events = [new(payload, actor="engine:w", request=request) for payload in made]
    fence = Fence(request, 1)
    assert isinstance(
        await store.append(Append(stream=stream, events=events, fence=fence)), Appended
    )


async def seed(database: Path) -> None:
    async with open_store(f"sqlite:///{database}") as store:
        await says(store, DONE, REQUEST, ASKED, over=True)
        call = call_id(REQUEST, 0)
        result = [
            c.StepStarted(step=call, name="weather", kind="tool", input={"city": "Paris"}),
            c.StepCompleted(step=call, output=json.dumps({"sky": "clear"})),
        ]
        events = [new(payload, actor="user:local") for payload in result]
        await store.append(Append(stream=thread_stream(DONE), events=events))
        await says(store, GOING, REQUEST[:-1] + "1", 'Now.<tool_call>\n{"name', over=False)


@pytest.fixture(scope="module")
def server(built_ui: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    database = tmp_path_factory.mktemp("calls") / "log.db"
    with ThreadPoolExecutor(1) as thread:  # this one may have a loop: Playwright's
        thread.submit(asyncio.run, seed(database)).result()
    with running(database, str(HANDLERS), "--no-engine") as started:
        yield started


def call(page: Page, index: int) -> Locator:
    return page.get_by_role("tree", name="Tool calls").get_by_role("treeitem").nth(index)


def test_calls_are_seen_with_arguments_and_results(chat: Chat) -> None:
    page = chat.page
    page.goto(f"/t/{DONE}")
    chat.has_text("Say first.")
    expect(page.get_by_role("log")).not_to_contain_text("tool_call")
    expect(page.get_by_role("treeitem")).to_have_count(2)
    expect(call(page, 0)).to_contain_text('weather{"city":"Paris"}')
    call(page, 0).click()
    details = page.locator(".step-details")
    expect(details).to_contain_text("Arguments")
    expect(details).to_contain_text('{"sky":"clear"}')
    call(page, 1).click()
    expect(details.last).to_contain_text("No result yet.")
    chat.answers.last.get_by_role("button", name="Copy message").click()
    assert page.evaluate("navigator.clipboard.readText()") == "Say first."


def test_half_a_call_is_not_shown(chat: Chat) -> None:
    chat.page.goto(f"/t/{GOING}")
    expect(chat.answers.last).to_contain_text("Calling a tool")
    assert chat.shown() == "Now."


def test_a_long_conversation_of_the_api(chat: Chat, server: Server) -> None:
    """It is shown from its end, and what stands far above has its text when it is looked at."""
    roles = ["developer", *["user", "assistant"] * 60]
    items = [{"role": role, "content": f"said {n}"} for n, role in enumerate(roles)]
    body = json.dumps({"items": items}).encode()
    with urllib.request.urlopen(f"{server.url}/v1/conversations", body, timeout=10) as response:
        thread = json.load(response)["id"].removeprefix("conv_")
    cuts = [thread[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))]
    chat.page.goto(f"/t/{'-'.join(cuts)}")
    expect(chat.answers.last.locator(".md")).to_be_in_viewport()
    expect(chat.answers.last.locator(".md")).to_have_text("said 120")
    chat.page.locator(".scroller").evaluate("(e) => { e.scrollTop = 0 }")
    expect(chat.page.locator(".instructions")).to_be_in_viewport()
    expect(chat.page.locator(".instructions")).to_contain_text("said 0")
    expect(chat.answers.first.locator(".md")).to_have_text("said 2")
    with urllib.request.urlopen(f"{server.url}/v1/conversations", b"{}", timeout=10):
        pass  # nothing to be seen in it: it is not listed
    chat.ask("hello")
    expect(chat.page.locator(".thread")).to_have_count(3)

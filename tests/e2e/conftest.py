"""A real server and a real browser: Chromium, driven by Playwright."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.e2e.chat import Chat
from tests.support.server import Server

ROOT = Path(__file__).parent.parent.parent
HANDLERS = Path(__file__).parent / "handlers.py"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: What a browser says when a server is away. Expected where a test kills one.
AWAY = ("ERR_CONNECTION", "WebSocket connection", "Failed to load resource")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    reason = "no Chromium: install the package 'chromium'"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def built_ui() -> None:
    """The UI, built from the sources as they are."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.build_ui()


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """One browser a module: Playwright's event loop must be gone before async tests run."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def server(built_ui: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`everlog serve handlers.py`, without an engine."""
    database = tmp_path_factory.mktemp("e2e") / "log.db"
    started = Server(database, str(HANDLERS), "--no-engine")
    started.start()
    yield started
    if started.process is not None and started.process.poll() is None:
        started.kill()


@pytest.fixture
def new_page(browser: Browser, server: Server) -> Iterator[Callable[..., Page]]:
    """Makes pages with a profile of their own. Afterwards none may have complained."""
    complaints: list[str] = []
    contexts = []

    def heard(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not any(x in message.text for x in AWAY):
            complaints.append(message.text)

    def make(**options: Any) -> Page:
        context = browser.new_context(base_url=server.url, **options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def chat(new_page: Callable[..., Page]) -> Chat:
    """A new chat in a fresh profile."""
    page = new_page()
    page.goto("/")
    return Chat(page)

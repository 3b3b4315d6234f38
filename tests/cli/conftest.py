"""A log on disk with one conversation in it, and a way to run the command on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.cli import everlog
from app.events import catalogue as c
from app.events.codec import new
from app.events.envelope import NewEvent, thread_stream
from app.events.lifecycle import FENCED
from app.events.open import open_store
from app.events.seal import seal_now
from app.events.store import Append, Appended, Fence
from tests.cli.story import THREAD, new_events

ROOT = Path(__file__).parents[2]
OTHER = "01938f00-0000-7000-8000-0000000000ff"

Run = Callable[..., Result]


@contextlib.contextmanager
def child(*args: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`everlog ...` in a process that is gone afterwards, however the test ends."""
    command = [sys.executable, "-m", "app", *args]
    with subprocess.Popen(command, cwd=ROOT, **options) as process:
        try:
            yield process
        finally:
            process.kill()


async def write_story(path: Path) -> None:
    """Append the story event by event, as the service would, and seal it."""
    async with open_store(f"sqlite:///{path}") as store:
        for event in new_events():
            fence = None
            if event.type == "request.claimed":
                claimed = await store.claim(worker="w", limit=1, lease=60)
                assert len(claimed) == 1
                continue
            if event.type == "request.abandoned":
                assert await store.expire(worker="w", reason="core died") == ["q1"]
                continue
            if event.type in FENCED:
                epoch = (await store.leases())[0].epoch
                fence = Fence(event.request or "", epoch)
            await append(store, THREAD, event, fence)
        await append(store, OTHER, new(c.ThreadCreated(owner="local", title="Another")))
        await seal_now(store)


async def append(store: object, thread: str, event: NewEvent, fence: Fence | None = None) -> None:
    outcome = await store.append(  # type: ignore[attr-defined]
        Append(stream=thread_stream(thread), events=[event], fence=fence)
    )
    assert isinstance(outcome, Appended), outcome


@pytest.fixture(scope="session")
def story_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("story") / "story.db"
    asyncio.run(write_story(path))
    return path


@pytest.fixture
def database(story_file: Path, tmp_path: Path) -> Path:
    """The story in a file of its own, not open anywhere."""
    path = tmp_path / "everlog.db"
    path.write_bytes(story_file.read_bytes())
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `everlog ...` in an empty folder without any setting from outside."""
    for name in list(os.environ):
        if name.startswith("EVERLOG_") or name in ("PORT", "HOST", "DATABASE_URL"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)

    def invoke(*args: str, code: int = 0, input: str | None = None) -> Result:
        result = CliRunner().invoke(everlog, args, input=input, prog_name="everlog")
        assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
        return result

    return invoke

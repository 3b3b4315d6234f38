"""Starting cores, and what is said when that fails."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from app.engine.frames import CoreConfig
from app.engine.supervisor import Backoff, CoreProcess, describe
from app.errors import StartupError


def test_the_first_restart_is_at_once_and_the_next_ones_ever_later() -> None:
    backoff = Backoff(first=0.5, most=4.0)
    assert [backoff.next() for _ in range(6)] == [0.0, 0.5, 1.0, 2.0, 4.0, 4.0]
    backoff.reset()
    assert backoff.next() == 0.0


def test_ends_are_described() -> None:
    assert describe(1) == "the engine process exited with status 1"
    assert describe(-signal.SIGSEGV) == "the engine process was killed by SIGSEGV"
    assert "out of memory" in describe(-signal.SIGKILL)
    assert "signal 99" in describe(-99)


async def test_a_core_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"nothing\.gguf") as caught:
        await CoreProcess.launch(CoreConfig(model=str(tmp_path / "nothing.gguf")))
    assert caught.value.hint


async def test_a_folder_named_app_in_the_current_directory_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit('the wrong app')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StartupError, match=r"nothing\.gguf"):
        await CoreProcess.launch(CoreConfig(model="nothing.gguf"))


async def test_a_core_that_dies_without_a_word_is_described(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StartupError, match="exited with status 1"):
        await CoreProcess.launch(CoreConfig(model="x"))

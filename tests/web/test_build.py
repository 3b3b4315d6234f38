"""The built UI: complete, small, offline, and known to be stale when it is."""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent

#: Largest size of what a first visit loads, in bytes after gzip.
BUDGET = 120_000


@pytest.fixture(scope="session")
def static(
    hatch_build: ModuleType, npm: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A fresh build, in a copy of the sources: the one in the tree stays as it is."""
    root = tmp_path_factory.mktemp("clone")
    keep = shutil.ignore_patterns("node_modules")
    shutil.copytree(ROOT / "web", root / "web", ignore=keep)
    (root / "web" / "node_modules").symlink_to(ROOT / "web" / "node_modules")
    assert hatch_build.build_ui(root)
    assert not hatch_build.build_ui(root), "a second build has nothing to do"
    return Path(hatch_build.static_dir(root))


def test_typescript_is_sound(npm: Callable[..., str]) -> None:
    npm("run", "check")


def test_pure_modules(npm: Callable[..., str]) -> None:
    assert re.search(r"# fail 0\b|fail 0\n", npm("test"))


def test_a_first_visit_is_small(static: Path) -> None:
    page = (static / "index.html").read_text()
    names = re.findall(r'"\./static/(assets/[^"]+)"', page)
    assert {Path(name).suffix for name in names} == {".js", ".css"}
    sizes = {name: len(gzip.compress((static / name).read_bytes(), 9)) for name in names}
    assert sum(sizes.values()) <= BUDGET, sizes


def test_everything_comes_from_here(static: Path) -> None:
    page = (static / "index.html").read_text()
    assert "{{" not in page
    assert (static / "thread.html").read_text() == page.replace('"./', '"../')
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bon\w+=|style=", page), "nothing inline"
    for path in static.rglob("*.css"):
        assert not re.search(r"url\((?!['\"]?data:)|@import", path.read_text()), path


def test_packed_files_are_the_same_files(static: Path) -> None:
    plain = [p for p in static.rglob("*") if p.suffix in {".js", ".css", ".html", ".svg"}]
    assert len(plain) >= 5
    for path in plain:
        packed = path.with_name(path.name + ".gz")
        assert gzip.decompress(packed.read_bytes()) == path.read_bytes()
        assert path.with_name(path.name + ".br").is_file()
    assert not list(static.rglob("*.map"))


def test_licences_of_what_is_bundled_are_included(static: Path) -> None:
    text = (static / "LICENSES.txt").read_text()
    for name in ("preact", "@preact/signals", "marked", "remend", "dompurify", "highlight.js"):
        assert re.search(rf"^{re.escape(name)} \d", text, re.MULTILINE), name


def test_a_changed_source_makes_the_build_stale(hatch_build: ModuleType, static: Path) -> None:
    root = static.parent.parent.parent
    assert hatch_build.up_to_date(root)
    extra = root / "web" / "src" / "extra.ts"
    extra.write_text("export {};\n")
    assert not hatch_build.up_to_date(root)
    extra.unlink()
    assert hatch_build.up_to_date(root)


def test_the_lock_file_names_no_registry() -> None:
    lock = (ROOT / "web" / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert "registry." not in lock


def test_source_files_stay_small() -> None:
    for path in (ROOT / "web").rglob("*"):
        if path.suffix in {".ts", ".tsx", ".css", ".mjs"} and "node_modules" not in path.parts:
            lines = path.read_text().count("\n")
            assert lines <= 450, f"{path}: {lines} lines; split it"

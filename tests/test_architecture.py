"""The shape of the house: imports point one way, files and functions stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
APP = ROOT / "app"
FILES = sorted(APP.rglob("*.py"))

#: Layers from the ground up. A layer may import itself and what stands below it.
LAYERS = [
    "errors",
    "events",
    "projections",
    "telemetry",
    "engine",
    "chat",
    "testing",
    "transport",
    "cli",
]
#: What may be imported from everywhere above ``errors``.
GROUND = {"errors", "config"}
#: The side of the engine that lives in the core process: no event loop, no database.
HOST_SIDE = {
    *("host", "supervisor", "hub", "flush", "recovery", "deadlines", "claims", "claiming"),
    *("keeper", "workers", "again"),
}


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of the modules a file imports, with line numbers."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def layer(parts: tuple[str, ...]) -> str | None:
    return parts[1].removesuffix(".py") if len(parts) > 1 and parts[0] == "app" else None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = layer(path.relative_to(ROOT).parts)
    if own in {"__init__", "__main__"}:
        return  # the public face re-exports; nothing else imports from it
    for name, line in imported(path):
        target = layer(tuple(name.split(".")))
        if target is None or target == own or target in GROUND:
            continue
        if target not in LAYERS:
            continue  # `from app import __version__`
        assert own in LAYERS, f"{path}:{line}: {own} is not a layer but imports {name}"
        assert LAYERS.index(target) < LAYERS.index(own), f"{path}:{line}: {own} imports {name}"


def core_files() -> list[Path]:
    return [
        p for p in (APP / "engine").rglob("*.py") if p.stem not in HOST_SIDE and p.stem != "channel"
    ]


@pytest.mark.parametrize("path", core_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_core_knows_neither_event_loop_nor_database(path: Path) -> None:
    banned = {"asyncio", "anyio", "sqlite3", "aiosqlite", "asyncpg", "starlette", "websockets"}
    allowed = {"app.events", "app.events.catalogue"}
    for name, line in imported(path):
        assert name.split(".")[0] not in banned, f"{path}:{line}: {name}"
        if name.startswith("app.events"):
            assert ".".join(name.split(".")[:3]) in allowed, f"{path}:{line}: {name}"
        assert not name.startswith("app.projections"), f"{path}:{line}: {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    limit = 900 if path.name == "catalogue.py" else 450  # all event types stand together
    assert text.count("\n") <= limit, f"{path}: {text.count(chr(10))} lines; split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{path}:{node.lineno}: {node.name} has {length} lines; split it"


def test_every_module_says_what_it_is() -> None:
    bare = [str(p) for p in FILES if not ast.get_docstring(ast.parse(p.read_text()))]
    assert not bare, f"without a docstring: {bare}"


def test_only_the_core_loads_torch() -> None:
    # It takes seconds and hundreds of MB, on an event loop that has chats to serve.
    code = (
        "import sys\n"
        "import app.cli, app.transport.server, app.engine.structured\n"
        "from app.events.catalogue import Structured\n"
        "app.engine.structured.check(Structured(regex='a+'))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

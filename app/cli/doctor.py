"""Command ``doctor``: what on this machine helps or hinders."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import click

from app.cli.console import counted, emit, size, styled
from app.cli.doctor_postgres import Answers, Check, ask_postgres, postgres_checks
from app.cli.options import json_option, with_settings
from app.cli.root import everlog
from app.config import Config
from app.errors import EverlogError
from app.events.url import parse_url
from app.settings import Loaded

MEMORY_WANTED = 2 << 30
DISK_WANTED = 1 << 30
INDENT = " " * 12
YEAR_2024 = 1_704_067_200


@everlog.command()
@json_option()
@with_settings
def doctor(loaded: Loaded, as_json: bool) -> None:
    """Check this machine and these settings. The exit code is 1 if `serve` cannot work."""
    checks = list(examine(loaded.config))
    if as_json:
        emit({"ok": all(check.state != "bad" for check in checks), "checks": checks})
    else:
        marks = {"good": "✓", "warning": "!", "bad": "✗"}
        for check in checks:
            tone = "queue" if check.state == "warning" else check.state
            name = f"{styled(marks[check.state], tone)} {check.name:<9} "
            click.echo(name + _indented(check.finding))
            if check.hint:
                click.echo(INDENT + styled(_indented(check.hint), "dim"))
    if any(check.state == "bad" for check in checks):
        raise SystemExit(1)


def _indented(text: str) -> str:
    """Return a text behind `INDENT`, folded on a terminal between words."""
    if not sys.stdout.isatty():
        return text
    width = max(20, shutil.get_terminal_size().columns - len(INDENT))
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return f"\n{INDENT}".join(lines)


def examine(config: Config) -> Iterator[Check]:
    """Yield all findings."""
    checks: list[Callable[[Config], Check]] = [_python, _torch, _model, _memory]
    try:
        database = parse_url(config.database.url)
    except EverlogError as error:
        yield Check("database", "bad", str(error), error.hint)
    else:
        if database.dsn is not None:
            yield from postgres_checks(partial(_ask, database.dsn), database.shown)
        else:
            checks += [_sqlite, _disk, _database, _log]
    for check in [*checks, _port, _clock]:
        yield check(config)


def _ask(dsn: str) -> Answers:
    import asyncio

    return asyncio.run(ask_postgres(dsn))


def _python(config: Config) -> Check:
    return Check("python", "good", f"{platform.python_version()} on {platform.platform()}")


def _sqlite(config: Config) -> Check:
    """The WAL-reset bug (sqlite.org/wal.html#walresetbug) is in 3.7.0 to 3.51.2."""
    import sqlite3

    version = sqlite3.sqlite_version_info
    fixed = version >= (3, 51, 3) or any(
        version[:2] == branch[:2] and version >= branch for branch in ((3, 50, 7), (3, 44, 6))
    )
    if fixed:
        return Check("sqlite", "good", sqlite3.sqlite_version)
    return Check(
        "sqlite",
        "warning",
        f"{sqlite3.sqlite_version} has the WAL-reset bug; Everlog avoids it by writing alone",
        "Let no other program write this database, or use SQLite 3.51.3 or later.",
    )


def _torch(config: Config) -> Check:
    if not config.engine.enabled:
        return Check("torch", "good", "not needed: engine.enabled is false")
    try:
        import torch
    except ImportError as error:
        return Check("torch", "bad", f"cannot be imported: {error}", "Run: pip install everlog")
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    elif config.engine.device == "cuda":
        return Check(
            "torch", "bad", f"{torch.__version__} sees no GPU", "Set engine.device to auto or cpu."
        )
    else:
        device = f"CPU, {config.engine.threads or torch.get_num_threads()} threads"
    return Check("torch", "good", f"{torch.__version__}, {device}")


def _model(config: Config) -> Check:
    if not config.engine.enabled:
        return Check("model", "good", "not needed: engine.enabled is false")
    from app.engine import hub

    name = config.engine.model
    path = hub.find(name)
    if path is None:
        return Check(
            "model", "warning", f"{name} is not here yet", f"Run: everlog models pull {name}"
        )
    return Check("model", "good", f"{name} at {path} ({size(_bytes(path))})")


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _memory(config: Config) -> Check:
    try:
        text = Path("/proc/meminfo").read_text()
        free = next(int(line.split()[1]) for line in text.splitlines() if "MemAvailable" in line)
    except (OSError, StopIteration):
        return Check("memory", "warning", "this system does not say how much is free")
    free *= 1024
    state: Literal["good", "warning"] = "good" if free >= MEMORY_WANTED else "warning"
    hint = None if state == "good" else "A larger model or KV cache may not fit."
    return Check("memory", state, f"{size(free)} free", hint)


def _folder(config: Config) -> Path:
    path = parse_url(config.database.url).path
    return Path() if path is None else path.absolute().parent


def _disk(config: Config) -> Check:
    folder = _folder(config)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free >= DISK_WANTED:
        return Check("disk", "good", f"{size(free)} free at {folder}")
    return Check("disk", "warning", f"only {size(free)} free at {folder}", "The log grows there.")


def _database(config: Config) -> Check:
    """Write and sync a file beside the database, which also tells what a commit costs."""
    import tempfile

    folder = _folder(config)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            took = []
            for _ in range(10):
                start = time.perf_counter()
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
                took.append(time.perf_counter() - start)
    except OSError as error:
        return Check(
            "database",
            "bad",
            f"{folder} cannot be written: {error.strerror}",
            "Create it, allow writing to it, or set database.url.",
        )
    middle = sorted(took)[len(took) // 2] * 1e3
    return Check("database", "good", f"{folder} can be written; one sync takes {middle:.1f} ms")


def _log(config: Config) -> Check:
    """Whether what is in the database's place is a log of this version."""
    from app.events.migrate import pending
    from app.events.url import database_path

    path = database_path(config.database.url)
    if path is None or not path.exists():
        return Check("log", "good", "none yet; `everlog serve` begins one")
    try:
        due = pending(config.database.url)
    except EverlogError as error:
        return Check("log", "bad", error.message, error.hint)
    if due:
        facts = f"{counted(len(due), 'migration')} due"
        return Check("log", "good", f"{path}: {facts}; `everlog serve` applies what is due")
    return Check("log", "good", f"{path} is of this version")


def _port(config: Config) -> Check:
    import socket

    host, port = config.server.host, config.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            return Check(
                "port",
                "bad",
                f"{host}:{port} cannot be listened on: {error.strerror}",
                "Stop what uses it (perhaps Everlog itself), or set server.port.",
            )
    return Check("port", "good", f"{host}:{port} is free")


def _clock(config: Config) -> Check:
    now = time.time()
    if now < YEAR_2024:
        return Check("clock", "warning", f"it is {time.ctime(now)}?", "Set the clock.")
    return Check("clock", "good", time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now)))

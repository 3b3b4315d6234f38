"""Command ``worker``: an engine for a log that others serve."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.cli.banner import model_facts, show
from app.cli.console import progress, styled
from app.cli.options import setting, with_settings
from app.cli.root import everlog
from app.cli.serve import configure_logging
from app.config import Config
from app.errors import EverlogError, InputError, StartupError
from app.settings import Loaded

if TYPE_CHECKING:
    from app.engine.host import EngineHost

MOST_HERE = 1_000
"""Workers of one machine that get names by themselves."""


@everlog.command()
@setting("--model", "engine.model", metavar="NAME")
@click.option("--name", metavar="NAME", help="Name of this worker; by default that of the machine.")
@with_settings
def worker(loaded: Loaded, name: str | None) -> None:
    """Run an engine for a log on Postgres, and nothing else: no port, no chat.

    Any number of workers share the requests of a log; each takes those that name its model, or
    none. If one dies, the others go on with its answers where they were. Ctrl-C or SIGTERM ends it
    cleanly. Its name must be its own, and the same at every start.
    """
    from app.events.presence import check_name
    from app.events.url import parse_url

    config = loaded.config
    if parse_url(config.database.url).kind != "postgres":
        raise InputError(
            "a worker needs a log that several processes can write",
            field="database.url",
            hint="Use a Postgres URL. With SQLite `everlog serve` runs the engine itself.",
        )
    if not config.engine.enabled:
        raise InputError("is false: a worker is nothing else", field="engine.enabled")
    if name is not None:
        check_name(name, "--name")
    configure_logging(config.log)
    with _named(name) as (own, where):
        try:
            _run(config, own, where)
        except StartupError:
            raise
        except EverlogError as error:
            raise StartupError(str(error), hint=error.hint) from error


@contextlib.contextmanager
def _named(given: str | None) -> Iterator[tuple[str, str]]:
    """Yield a name that no other worker of this machine has, and what proves that.

    The number in it is the lowest that is free, held by a lock that ends with the process.
    """
    from app.events.presence import place

    if given is not None:
        yield given, ""
        return
    folder = Path(tempfile.gettempdir())
    for number in range(1, MOST_HERE):
        path = folder / f"everlog-worker-{os.getuid()}-{number}.lock"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = os.fstat(file)
                where = place(f"{found.st_dev}:{found.st_ino}")
                yield f"{socket.gethostname()}:worker-{number}", where
                return
        finally:
            os.close(file)
    raise StartupError("there are too many workers on this machine", hint="Give it a --name.")


def _run(config: Config, name: str, where: str) -> None:
    from app.engine import hub

    started = time.monotonic()
    if hub.find(config.engine.model) is None:
        with progress(f"Fetching {config.engine.model}", "bytes") as advance:
            hub.resolve(config.engine.model, progress=advance)
    if sys.stdout.isatty():
        click.echo(styled(f"Loading {config.engine.model} ...", "dim"))
    import uvloop

    from app.transport.worker import work

    def on_ready(host: EngineHost) -> None:
        show(facts(config, name, host), f"Worker {name}", time.monotonic() - started)

    uvloop.run(work(config, name, where, on_ready=on_ready))
    logging.getLogger("everlog").info("stopped; what was under way goes on at another worker")


def facts(config: Config, name: str, host: EngineHost) -> dict[str, str]:
    """Return what a person wants to know of a worker that has become ready."""
    from app.events.url import parse_url

    model = host.model
    assert model is not None
    return {
        "worker": name,
        "database": parse_url(config.database.url).shown,
        **model_facts(model),
    }

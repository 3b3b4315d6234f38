"""Command ``serve``: the service, with a banner when it is ready."""

from __future__ import annotations

import gc
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from app.cli.banner import model_facts, show
from app.cli.console import progress, styled
from app.cli.options import setting, with_settings
from app.cli.root import everlog
from app.config import Config, LogConfig
from app.errors import EverlogError, InputError, StartupError
from app.settings import Loaded

if TYPE_CHECKING:
    from app.transport.server import Service

GARBAGE = 100_000
"""Objects made and not freed before the garbage collector looks for cycles among them."""


@everlog.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@setting("--host", "server.host", metavar="ADDRESS")
@setting("--port", "server.port", metavar="NUMBER")
@setting("--model", "engine.model", metavar="NAME")
@setting("--no-engine", "engine.enabled", flag_value="false", help="Run no engine in this process.")
@click.option("--watch", is_flag=True, help="Load FILE again whenever it is saved.")
@with_settings
def serve(loaded: Loaded, file: Path | None, watch: bool) -> None:
    """Run the service: chat in the browser, engine and log.

    FILE holds your handlers; without one the built-in chat answers. The first start fetches the
    default model. Ctrl-C or SIGTERM ends it cleanly: generations go on at the next start.
    """
    config = loaded.config
    if watch and file is None:
        raise InputError("needs FILE", field="--watch", hint="everlog serve chat.py --watch")
    if file is not None and not file.is_file():
        raise InputError(f"There is no file {file}", field="FILE")
    configure_logging(config.log)
    try:
        _warn_about_old_sqlite(config)
        _run(config, file, watch)
    except StartupError:
        raise
    except EverlogError as error:
        raise StartupError(str(error), hint=error.hint) from error


def _warn_about_old_sqlite(config: Config) -> None:
    from app.events.sqlite_errors import warn_about_old_sqlite
    from app.events.url import parse_url

    if parse_url(config.database.url).path is not None:
        warn_about_old_sqlite()


def _run(config: Config, file: Path | None, watch: bool) -> None:
    started = time.monotonic()
    if config.engine.enabled:
        _fetch_model(config)
        if sys.stdout.isatty():
            click.echo(styled(f"Loading {config.engine.model} ...", "dim"))
        else:
            logging.getLogger("everlog").info("loading %s", config.engine.model)
    import uvloop

    from app.transport.server import serve

    def on_ready(service: Service) -> None:
        banner(service, time.monotonic() - started)
        _rarely_collect()

    uvloop.run(serve(config, file=file, watch=watch, on_ready=on_ready))
    logging.getLogger("everlog").info("stopped; what was under way goes on at the next start")


def _rarely_collect() -> None:
    """Let the garbage collector look seldom, and never at what start-up made.

    Events and frames hold no cycles, so nearly everything is freed by its reference count; looking
    for cycles every 700 objects, Python's default, doubled the longest wait for a first token when
    100 clients post at once.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, 20, 20)


def _fetch_model(config: Config) -> None:
    """Fetch the model if it is not here yet, after a look whether serving can work at all."""
    from app.engine import hub

    if hub.find(config.engine.model) is not None:
        return
    from app.transport.listen import listen

    listen(config.server).close()  # rather now than after a download
    with progress(f"Fetching {config.engine.model}", "bytes") as advance:
        hub.resolve(config.engine.model, progress=advance)


# --------------------------------------------------------------------------------- banner


def facts(service: Service) -> dict[str, str]:
    """Return what a person wants to know of a service that has become ready."""
    database = service.database
    where = {"memory": "in memory, lost on exit", "postgres": database.shown}.get(database.kind)
    found = {"url": service.url, "database": where or str(Path(database.shown).absolute())}
    if service.auth.locked_out:
        found["keys"] = "none yet, so nobody comes in: everlog keys create NAME"
    if database.kind == "postgres":
        found["node"] = service.runtime.presence.name
    if service.model is not None:
        return found | model_facts(service.model)
    workers = [f"{worker.model} at {worker.worker}" for worker in service.workers.ready]
    if workers:
        return found | {"model": ", ".join(workers)}
    if service.engine == "disabled":
        return found | {"model": "none: this process runs no engine"}
    hint = "start one: everlog worker" if database.kind == "postgres" else "leave out --no-engine"
    return found | {"model": f"none is at work: messages wait ({hint})"}


def banner(service: Service, seconds: float) -> None:
    """Say that it is ready."""
    show(facts(service), "Everlog", seconds)


# -------------------------------------------------------------------------------- logging


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what the record has beside."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        line |= getattr(record, "facts", {})
        return msgspec.json.encode(line).decode()


class Lines(logging.Formatter):
    """For people: clock, level where it matters, message, and facts on lines of their own."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        text = f"{clock}  {level}{record.getMessage()}"
        for name, value in getattr(record, "facts", {}).items():
            text += f"\n          {name:<9} {value}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def configure_logging(config: LogConfig) -> None:
    """Send log records to stderr: text on a terminal, else JSON lines, or as the setting says."""
    text = config.format == "text" or (config.format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines() if text else JsonLines())
    logging.basicConfig(handlers=[handler], level=config.level.upper(), force=True)
    for noisy in ("uvicorn.error", "websockets", "watchfiles", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.root.level))
    # Of a database that is away we tell ourselves, and in one line.
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)

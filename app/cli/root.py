"""The command group: errors become one line and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from app import __version__
from app.cli.console import report, say_warnings
from app.errors import EverlogError, InputError, StartupError

__all__ = ["EXIT_INPUT", "EXIT_INTERRUPTED", "EXIT_STARTUP", "everlog", "main"]

EXIT_ERROR = 1
EXIT_INPUT = 2
EXIT_STARTUP = 3
EXIT_INTERRUPTED = 130


def exit_code(error: EverlogError) -> int:
    """Return 2 for bad input, 3 for a service that cannot start, 1 for everything else."""
    if isinstance(error, StartupError):
        return EXIT_STARTUP
    return EXIT_INPUT if isinstance(error, InputError) else EXIT_ERROR


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """Return the error of ours (or the interruption) that a task group wrapped, or the group."""
    found: BaseException = (
        group.subgroup((EverlogError, KeyboardInterrupt, BrokenPipeError)) or group
    )
    while found is not group and isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


ORDER = (
    *(
        "serve",
        "worker",
        "keys",
        "ask",
        "batch",
        "threads",
        "show",
        "replay",
        "timeline",
        "re-run",
        "events",
        "head",
        "verify",
    ),
    *("rebuild", "export", "import", "copy", "backup", "archive", "restore", "redact", "migrate"),
    *("models", "config", "doctor"),
)


class Group(click.Group):
    """Lists its commands with the whole first sentence of each."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list; click's own cuts what is longer than a line."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, command.get_short_help_str(limit=200)) for name, command in found if command]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Root(Group):
    """Reports `EverlogError`, and is quiet about Ctrl-C and closed pipes."""

    group_class = Group

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order people need them."""
        return sorted(self.commands, key=ORDER.index)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see the class."""
        say_warnings()
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BaseExceptionGroup as group:
            self._end(ctx, _first(group))
        except (EverlogError, KeyboardInterrupt, BrokenPipeError) as error:
            self._end(ctx, error)

    def _end(self, ctx: click.Context, error: BaseException) -> None:
        if isinstance(error, EverlogError):
            report(error)
            ctx.exit(exit_code(error))
        if isinstance(error, KeyboardInterrupt):
            ctx.exit(EXIT_INTERRUPTED)
        if isinstance(error, BrokenPipeError):
            # The reader has seen enough. Whatever is still buffered goes nowhere, without a word.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        raise error


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="everlog")
def everlog() -> None:
    """A chat service whose only truth is an event log.

    `everlog serve` runs it; the other commands look into its log, also while it runs.
    """


def main() -> None:
    """Entry of the console script."""
    everlog(prog_name="everlog")

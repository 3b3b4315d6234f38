"""``docs/cli.md``, made from the commands themselves: ``python -m app.cli.reference``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from app.cli import everlog

__all__ = ["reference"]

_INTRO = """\
# The everlog command

<!-- Made by `python -m app.cli.reference > docs/cli.md`; a test keeps it current. -->

`everlog` (or `python -m app`) runs the service and looks into its log.

- Commands that read work on the database directly, also while a server writes it; they change
  nothing but the read models beside it (`<database>.views`), which can be deleted at any time.
- `THREAD` is the id of a conversation or a unique beginning of one; `everlog threads` shows them.
- `SEQ` is a position in the log: 1, 2, 3 ...
- `--json` prints one JSON document (JSON Lines for events) to stdout, and nothing else.
- Settings come from `everlog.toml`, the environment and flags: [configuration](configuration.md).
- Errors go to stderr, with what to do next. `NO_COLOR` and pipes switch colours off.
- Completion: `eval "$(_EVERLOG_COMPLETE=bash_source everlog)"`, also `zsh_source`, `fish_source`.

| exit code | meaning |
|---|---|
| 0 | all is well |
| 1 | it failed: an answer that failed, a damaged log, nothing found |
| 2 | wrong usage: an unknown flag or setting, a value out of range |
| 3 | the service or the database cannot start |
| 130 | interrupted by Ctrl-C |
"""


def reference() -> str:
    """Return the whole page."""
    return _INTRO + "".join(_command(everlog, "everlog", 2))


def _command(command: click.Command, path: str, level: int) -> Iterator[str]:
    ctx = click.Context(command, info_name=path)
    if isinstance(command, click.Group):
        if path != "everlog":
            yield f"\n{'#' * level} {path}\n\n{_prose(command)}\n"
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            assert child is not None
            yield from _command(child, f"{path} {name}", level if path == "everlog" else level + 1)
        return
    usage = " ".join([path, *command.collect_usage_pieces(ctx)])
    yield f"\n{'#' * level} {path}\n\n```\n{usage}\n```\n\n{_prose(command)}\n"
    rows = [_option(ctx, param) for param in command.params if isinstance(param, click.Option)]
    if rows:
        yield "\n| option | meaning |\n|---|---|\n" + "".join(rows)


def _prose(command: click.Command) -> str:
    paragraphs = (command.help or "").strip().split("\n\n")
    return "\n\n".join(" ".join(text.split()) for text in paragraphs)


def _option(ctx: click.Context, param: click.Option) -> str:
    record: Any = param.get_help_record(ctx)
    flags, text = record or ("", "")
    return f"| `{flags}` | {text.replace('|', chr(92) + '|')} |\n"


if __name__ == "__main__":
    print(reference(), end="")

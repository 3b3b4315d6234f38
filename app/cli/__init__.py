"""The ``everlog`` command. Heavy imports happen inside commands, so ``--help`` is instant."""

from __future__ import annotations

from app.cli import (
    archive,
    ask,
    backup,
    batch,
    conversations,
    copy,
    doctor,
    keys,
    log,
    maintenance,
    models,
    redact,
    rerun,
    serve,
    settings,
    worker,
)
from app.cli.root import everlog, main

__all__ = ["everlog", "main"]

# Importing a module of commands registers them.
_COMMANDS = (
    *(
        serve,
        worker,
        keys,
        ask,
        batch,
        conversations,
        log,
        maintenance,
        archive,
        copy,
        backup,
        redact,
        rerun,
    ),
    *(models, settings, doctor),
)

"""The ``everlog`` command. Heavy imports happen inside commands, so ``--help`` is instant."""

from __future__ import annotations

from app.cli.root import main

__all__ = ["main"]

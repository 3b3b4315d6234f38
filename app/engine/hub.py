"""Models that Everlog can fetch, and where it keeps them."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """``$EVERLOG_CACHE``, else ``everlog`` in the user's cache directory."""
    own = os.environ.get("EVERLOG_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "everlog"

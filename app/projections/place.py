"""Where the read models of a log are kept."""

from __future__ import annotations

from pathlib import Path

from app.events.url import Database

__all__ = ["views_place"]


def views_place(database: Database) -> Path | str | None:
    """Return what `app.projections.views.Views.open` takes for the read models of a log.

    They are in a file beside a SQLite log, in a Postgres log's own database, and nowhere for one
    in memory.
    """
    if database.path is not None:
        return database.path.with_name(database.path.name + ".views")
    return database.dsn

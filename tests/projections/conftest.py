"""Where the read models live: each test runs on every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.projections.database import Where
from tests.support.postgres import Cluster


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    """An empty place for read models."""
    if request.param == "sqlite":
        return tmp_path / "views"
    cluster: Cluster = request.getfixturevalue("postgres")
    return cluster.new_database()

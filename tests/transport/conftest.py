"""A service for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.transport.server import Service
from tests.transport.serving import serving


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """A running service with an empty log."""
    async with serving(tmp_path) as running:
        yield running

"""Fixtures of the engine's control side."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """One event loop for fixtures that live longer than a test."""
    return "asyncio"

"""Fixtures shared by all tests."""

from __future__ import annotations

import os

import pytest

# Before anything imports torch: see app.engine.supervisor on why threads should sleep, not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture
def anyio_backend() -> str:
    """Everlog runs on asyncio."""
    return "asyncio"

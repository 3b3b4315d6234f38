"""Fixtures shared by all tests."""

from __future__ import annotations

import os

import pytest

# Before anything imports torch: tests share the machine with each other's processes, so threads
# should sleep, not spin (see app.engine.supervisor).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture
def anyio_backend() -> str:
    """Everlog runs on asyncio."""
    return "asyncio"

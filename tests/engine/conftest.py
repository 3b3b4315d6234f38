"""Fixtures of all tests of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.engine.hub import resolve


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The default model, fetched into the user's cache if it is not there."""
    return resolve("smollm2-135m-instruct")

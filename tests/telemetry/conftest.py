"""Fixtures of the tests of spans."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.telemetry.receiver import Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that takes everything."""
    with receiving() as running:
        yield running

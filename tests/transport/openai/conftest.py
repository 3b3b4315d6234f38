"""One service for all tests of a module: each ends the requests that it makes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from app.transport.server import Service
from tests.transport.serving import serving


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Everlog runs on asyncio."""
    return "asyncio"


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A running service with a log of its own."""
    async with serving(tmp_path_factory.mktemp("service")) as running:
        yield running

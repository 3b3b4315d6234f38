"""A disk that fills up and has room again."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

__all__ = ["Room", "limited", "mounted"]

MOST = 24 << 20
"""Bytes of the small disk."""


class Room(Protocol):
    """A folder, and how much fits into it."""

    folder: Path

    def fill(self) -> None:
        """Leave no room for anything."""

    def free(self) -> None:
        """Make room again."""


class _Mounted:
    """A file system of its own, full of a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        with self._filler.open("ab") as file, contextlib.suppress(OSError):
            while True:
                os.write(file.fileno(), b"x" * 65_536)
        with self._filler.open("ab") as file, contextlib.suppress(OSError):
            while True:
                os.write(file.fileno(), b"x" * 512)

    def free(self) -> None:
        self._filler.unlink()


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Room]:
    """A small tmpfs for the time of the block; skips the test where one cannot be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={MOST}", "everlog-test", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
    try:
        yield _Mounted(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class _Limited:
    """Files of a process may not grow beyond a size; writing fails as on a broken disk."""

    def __init__(self, folder: Path, pid: Callable[[], int]) -> None:
        self.folder = folder
        self._pid = pid

    def fill(self) -> None:
        """From now on no file may be larger than the largest is."""
        largest = max(path.stat().st_size for path in self.folder.iterdir())
        self._limit(largest + 4096)

    def free(self) -> None:
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, most: int) -> None:
        limits = (most, resource.RLIM_INFINITY)
        resource.prlimit(self._pid(), resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def limited(folder: Path, pid: Callable[[], int]) -> Iterator[Room]:
    """A limit on the size of files for one process, where there is such a thing (Linux)."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("files of another process cannot be limited here")
    folder.mkdir()
    yield _Limited(folder, pid)

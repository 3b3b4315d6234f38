"""The lock that keeps a second writing process away from a database."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from app.errors import StartupError

__all__ = ["WriterLock"]


class WriterLock:
    """An advisory lock on ``<database>.lock``, which holds the owner's process id.

    The kernel drops it when the process ends, however it ends; the file itself stays, because
    removing it would race with the next owner.
    """

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(database.name + ".lock")
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            StartupError: Another process has it, or the directory cannot be written.

        """
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StartupError(
                f"cannot write {self.path}: {error.strerror}",
                hint="create the directory, allow writing to it, or set database.url",
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(file, 32).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise StartupError(
                f"the database is in use by process {owner} (lock file {self.path})",
                hint="stop that process, or choose another database with database.url",
            ) from error
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        self._file = file

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

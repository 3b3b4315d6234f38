"""Results of an offline batch on disk: durable line by line, put in order at the end.

While a batch runs, results are appended to ``OUTPUT.part`` as they come. What is there counts as
done, so a run that was killed at any moment goes on behind it; of a line that was being written
only the beginning may be there, which is cut off. At the end the file becomes ``OUTPUT``, in one
step.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from app.errors import InputError
from app.transport.openai.lines import answered

__all__ = ["Journal", "Key"]

SYNC_SECONDS = 0.25
"""Longest time that a result may be lost for by a power cut; by a kill none is lost."""

Key = str | int
"""What a result belongs to: the ``custom_id``, or the number of a line that cannot be read."""


class _Error(msgspec.Struct):
    line: int = 0


class _Response(msgspec.Struct):
    status_code: int


class _Head(msgspec.Struct):
    custom_id: str | None = None
    error: _Error | None = None
    response: _Response | None = None

    @property
    def key(self) -> Key | None:
        """What the result belongs to; None if it is no result."""
        if self.response is None and self.error is None:
            return None
        if self.custom_id is None:
            return (self.error and self.error.line) or None
        return self.custom_id

    @property
    def failed(self) -> bool:
        """Whether it says that the line went wrong."""
        return self.response is None or self.response.status_code != 200


_encode = msgspec.json.Encoder().encode
_head = msgspec.json.Decoder(_Head).decode


class Journal:
    """The results of one batch.

    Attributes:
        done: What has a result.
        failed: How many results say that the line went wrong.

    Args:
        output: Where they are in the end.

    Raises:
        InputError: What is there holds something else than results, or cannot be written.

    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.part = output.with_name(output.name + ".part")
        self.failed = 0
        self._synced = time.monotonic()
        again = output.exists() and not self.part.exists()
        try:
            if again:
                output.rename(self.part)  # of an earlier run: to be gone on from
            output.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.part.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"another process writes {self.part} now") from None
        except OSError as error:
            raise InputError(f"{output} cannot be written: {error.strerror}") from None
        try:
            self.done = self._load()
        except BaseException:
            self._file.close()
            if again:
                self.part.rename(output)
            raise

    def _load(self) -> set[Key]:
        """Keys of whole lines; what is behind them is cut off."""
        found: set[Key] = set()
        end = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            found.add(self._key(line, number))
            end += len(line)
        self._file.truncate(end)
        return found

    def _key(self, line: bytes, number: int) -> Key:
        try:
            head = _head(line)
            key = head.key
        except (msgspec.DecodeError, UnicodeDecodeError):
            key = None
        if key is None:
            raise InputError(
                f"line {number} of {self.output} is no result of a batch",
                hint="Name another output.",
            )
        self.failed += head.failed
        return key

    def write(self, key: Key, result: dict[str, Any]) -> None:
        """Add a result; nothing can take it back but a power cut within `SYNC_SECONDS`."""
        self._file.write(_encode(result) + b"\n")
        self._file.flush()
        self.done.add(key)
        self.failed += not answered(result)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Make durable what was written."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Leave the results for a later run."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def finish(self, order: Callable[[Key], int] | None = None) -> None:
        """Put the results in place; with ``order``, in ascending order of what it returns."""
        self.sync()
        if order is None:
            self._file.close()
            self.part.replace(self.output)
            return
        sorted_part = self.part.with_name(self.part.name + ".sorted")
        with sorted_part.open("wb") as file:
            for start, length in self._places(order):
                self._file.seek(start)
                file.write(self._file.read(length))
            file.flush()
            os.fsync(file.fileno())
        self._file.close()
        sorted_part.replace(self.output)
        self.part.unlink()

    def _places(self, order: Callable[[Key], int]) -> list[tuple[int, int]]:
        found, start = [], 0
        self._file.seek(0)
        for line in self._file:
            key = _head(line).key
            assert key is not None
            found.append((order(key), start, len(line)))
            start += len(line)
        return [place[1:] for place in sorted(found)]

    def discard(self) -> None:
        """Forget all results there are."""
        self._file.truncate(0)
        self.done.clear()
        self.failed = 0

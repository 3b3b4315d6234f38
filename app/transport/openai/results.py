"""Files of a batch: its lines out of objects, and results that become objects."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import msgspec

from app.events.catalogue import FileCreated
from app.events.objects import CHUNK, Objects
from app.transport.openai.library import Batch, File

__all__ = ["Results", "texts"]

_encode = msgspec.json.Encoder().encode


async def texts(objects: Objects, file: File, *, most: int) -> AsyncIterator[tuple[int, bytes]]:
    """Lines of a file that are not empty, with their numbers from 1.

    Args:
        objects: Where it is.
        file: The file.
        most: Of a line that has more bytes, some may be missing, but there are still more.

    Raises:
        ObjectError: It cannot be read, or is not what was stored.

    """
    parts, size, number = list[bytes](), 0, 1
    async for chunk in objects.get(file.object, sha256=file.sha256):
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            text = b"".join((*parts, end))
            if text.strip():
                yield number, text
            parts, size, number = [], 0, number + 1
        if size <= most:
            parts.append(rest)
            size += len(rest)
    text = b"".join(parts)
    if text.strip():
        yield number, text


class Results:
    """Results of one kind, collected in a temporary file."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - until `close`
        self._hash = sha256()
        self._size = 0

    def add(self, result: dict[str, Any]) -> None:
        """Add a line."""
        data = _encode(result) + b"\n"
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    async def store(
        self, objects: Objects, batch: Batch, file: str, name: str
    ) -> FileCreated | None:
        """Make an object of them; returns what the log says of it, or None if there are none.

        Args:
            objects: Where it goes.
            batch: Whose results these are.
            file: Id of the file.
            name: What it is called.

        Raises:
            ObjectError: It cannot be stored.

        """
        if not self._size:
            return None
        digest = self._hash.hexdigest()
        # another node may store the same file, though with other results of lines cut short
        key = f"files/{file}-{digest[:16]}"
        await objects.put(key, self._chunks(), sha256=digest)
        return FileCreated(
            file=file,
            name=name,
            purpose="batch_output",
            bytes=self._size,
            sha256=digest,
            object=key,
            owner=batch.owner,
        )

    async def _chunks(self) -> AsyncIterator[bytes]:
        self._file.seek(0)
        while chunk := await asyncio.to_thread(self._file.read, CHUNK):
            yield chunk

    def close(self) -> None:
        """Forget them."""
        self._file.close()

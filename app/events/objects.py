"""Objects: files too large or too old for the log, kept in a directory or in S3.

An object is written once, whole, and never changed; its SHA-256 stands in the log. Readers check
it, so an object store need not be trusted to keep bytes as they were.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import IO, Protocol, TypeVar

import msgspec

from app.config import Config, ObjectsConfig
from app.errors import InputError
from app.events.store import StoreError

__all__ = [
    "CHUNK",
    "DirectoryObjects",
    "ObjectError",
    "ObjectMissing",
    "Objects",
    "Stored",
    "check_key",
    "checked",
    "join",
    "open_objects",
]

T = TypeVar("T")

CHUNK = 1 << 20
"""Bytes in a piece when an object is read."""

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+-]*")
_LONGEST_KEY = 512
_ABANDONED = 24 * 3600
"""Age in seconds at which a half-written file is nobody's any more."""


class ObjectError(StoreError):
    """An object cannot be written, or is not what it was; nothing was changed."""


class ObjectMissing(ObjectError):
    """There is no such object."""


class Stored(msgspec.Struct, frozen=True):
    """An object as it is stored: ``size`` in bytes, ``sha256`` in hex (None: not known)."""

    key: str
    size: int
    sha256: str | None = None


class Objects(Protocol):
    """A place for objects. Keys are ``part/part/...`` of letters, digits and ``. _ - = +``.

    Every method raises `ObjectError` when the place fails, and `ValueError` for a malformed key.
    """

    @property
    def name(self) -> str:
        """Where it is, for people."""
        ...

    async def put(
        self, key: str, chunks: AsyncIterable[bytes] | bytes, *, sha256: str | None = None
    ) -> Stored:
        """Store an object, all or nothing; memory is bounded whatever its size.

        An object of that key is replaced at the end, in one step.

        Args:
            key: Its name.
            chunks: Its bytes.
            sha256: What they must hash to (hex), if known; anything else stores nothing.

        """
        ...

    def get(self, key: str, *, sha256: str | None = None) -> AsyncIterator[bytes]:
        """Read an object piece by piece.

        With ``sha256`` the last step raises `ObjectError` if the bytes were not those.

        Raises:
            ObjectMissing: There is none.

        """
        ...

    async def read(self, key: str, *, sha256: str | None = None) -> bytes:
        """Read an object whole; see `get`."""
        ...

    async def stat(self, key: str) -> Stored | None:
        """Size of an object, without reading it; None if there is none."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an object; nothing happens if there is none."""
        ...

    def list(self, prefix: str = "") -> AsyncIterator[Stored]:
        """Objects whose key begins with ``prefix``, in order of their keys."""
        ...

    async def presign(
        self, key: str, *, seconds: int, filename: str | None = None, mime: str | None = None
    ) -> str | None:
        """URL under which a browser can fetch an object for a while; None where that cannot be.

        Args:
            key: Its name.
            seconds: How long the URL works.
            filename: Name under which the browser saves it.
            mime: Media type to answer with.

        """
        ...


# ------------------------------------------------------------------------ shared by all places


def check_key(key: str) -> str:
    """Return a key that is fit for every place.

    Raises:
        ValueError: It is malformed.

    """
    if len(key) > _LONGEST_KEY or not all(map(_PART.fullmatch, key.split("/"))):
        raise ValueError(f"malformed object key {key!r}")
    return key


async def pieces(chunks: AsyncIterable[bytes] | bytes, size: int) -> AsyncIterator[bytes]:
    """Regroup chunks into pieces of ``size`` bytes; the last may be shorter, none is empty."""
    buffer = bytearray()
    if isinstance(chunks, bytes):
        for start in range(0, len(chunks), size):
            yield chunks[start : start + size]
        return
    async for chunk in chunks:
        buffer += chunk
        while len(buffer) >= size:
            yield bytes(buffer[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)


async def checked(
    key: str, chunks: AsyncIterable[bytes], sha256: str | None
) -> AsyncIterator[bytes]:
    """Pass chunks on and check their hash at the end."""
    if sha256 is None:
        async for chunk in chunks:
            yield chunk
        return
    digest = new_sha256()
    async for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != sha256:
        raise ObjectError(
            f"object {key} is damaged: its SHA-256 is not the recorded one",
            hint="bring it back from a backup of the object store",
        )


async def join(chunks: AsyncIterable[bytes]) -> bytes:
    """All chunks as one."""
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
    return bytes(buffer)


def refuse_other_hash(key: str, found: str, wanted: str | None) -> None:
    """Refuse what was to be stored if it is not what was announced."""
    if wanted is not None and found != wanted:
        raise ObjectError(f"object {key} was not stored: its SHA-256 is not the expected one")


# ----------------------------------------------------------------------------------- directory


class DirectoryObjects:
    """Objects as files of a directory, which is made when the first one is stored.

    A file is written in ``.parts``, synced and renamed, so a crash leaves a whole object or none;
    what it leaves in ``.parts`` is removed by a later write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        """The directory."""
        return str(self.root)

    async def put(
        self, key: str, chunks: AsyncIterable[bytes] | bytes, *, sha256: str | None = None
    ) -> Stored:
        """See `Objects.put`."""
        path = self.root / check_key(key)
        digest, size = new_sha256(), 0
        part = await self._do(key, partial(_begin, self.root / ".parts"))
        try:
            async for piece in pieces(chunks, CHUNK):
                digest.update(piece)
                size += len(piece)
                await self._do(key, partial(part.write, piece))
            found = digest.hexdigest()
            refuse_other_hash(key, found, sha256)
            await self._do(key, partial(_finish, part, path))
        except BaseException:
            _give_up(part)
            raise
        return Stored(key, size, found)

    async def get(self, key: str, *, sha256: str | None = None) -> AsyncIterator[bytes]:
        """See `Objects.get`."""
        async for chunk in checked(key, self._chunks(key), sha256):
            yield chunk

    async def _chunks(self, key: str) -> AsyncIterator[bytes]:
        path = self.root / check_key(key)
        file = await self._do(key, partial(_open, path))
        with file:
            while chunk := await self._do(key, partial(file.read, CHUNK)):
                yield chunk

    async def read(self, key: str, *, sha256: str | None = None) -> bytes:
        """See `Objects.read`."""
        return await join(self.get(key, sha256=sha256))

    async def stat(self, key: str) -> Stored | None:
        """See `Objects.stat`."""
        path = self.root / check_key(key)
        try:
            return Stored(key, (await self._do(key, path.stat)).st_size)
        except ObjectMissing:
            return None

    async def delete(self, key: str) -> None:
        """See `Objects.delete`."""
        path = self.root / check_key(key)
        with suppress(ObjectMissing):
            await self._do(key, partial(_delete, path))

    async def list(self, prefix: str = "") -> AsyncIterator[Stored]:
        """See `Objects.list`."""
        for stored in await self._do(prefix, partial(self._walk, prefix)):
            yield stored

    def _walk(self, prefix: str) -> tuple[Stored, ...]:
        found = []
        for path in self.root.rglob("*"):
            key = path.relative_to(self.root).as_posix()
            if key.startswith(prefix) and not key.startswith(".") and path.is_file():
                found.append(Stored(key, path.stat().st_size))
        return tuple(sorted(found, key=lambda stored: stored.key))

    async def presign(
        self, key: str, *, seconds: int, filename: str | None = None, mime: str | None = None
    ) -> str | None:
        """None: a directory answers no browser."""
        return None

    async def _do(self, key: str, function: Callable[[], T]) -> T:
        """Run a function of the file system on a thread, with errors of ours."""
        try:
            return await asyncio.to_thread(function)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectMissing(
                f"object {key} is not in {self.root}",
                hint="bring it back from a backup, or correct objects.url",
            ) from error
        except OSError as error:
            raise ObjectError(f"objects in {self.root}: {error.strerror or error}") from error


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _begin(folder: Path) -> IO[bytes]:
    _make(folder)
    for old in folder.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > _ABANDONED:
                old.unlink()
    return tempfile.NamedTemporaryFile(dir=folder, delete=False)


def _finish(part: IO[bytes], path: Path) -> None:
    with part:
        part.flush()
        os.fsync(part.fileno())
    _make(path.parent)
    Path(part.name).replace(path)
    _sync(path.parent)


def _delete(path: Path) -> None:
    path.unlink()
    _sync(path.parent)


def _make(folder: Path) -> None:
    """Make a folder and those above it."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Have the names in a folder survive a power cut."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _give_up(part: IO[bytes]) -> None:
    part.close()
    Path(part.name).unlink(missing_ok=True)


# ------------------------------------------------------------------------------------- opening


@asynccontextmanager
async def open_objects(config: Config) -> AsyncIterator[Objects]:
    """Open the place for objects that the settings name, for the time of a ``with`` block.

    Nothing is created and nobody is connected to before the first object is stored or read.

    Raises:
        InputError: ``objects.url`` is malformed.

    """
    url = config.objects.url
    scheme, colon, rest = url.partition("://")
    if url == "" and _beside(config.database.url) is None:
        with tempfile.TemporaryDirectory(prefix="everlog-objects-") as folder:
            yield DirectoryObjects(Path(folder))  # lost on exit, like the log
        return
    if colon and scheme == "s3":
        async with _open_s3(rest, config.objects) as objects:
            yield objects
        return
    yield DirectoryObjects(_directory(url) if url else _beside(config.database.url) or Path())


@asynccontextmanager
async def _open_s3(rest: str, config: ObjectsConfig) -> AsyncIterator[Objects]:
    from app.events.s3 import S3Objects

    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise InputError(
            f"{config.url!r} names no bucket",
            field="objects.url",
            hint="write s3://bucket or s3://bucket/prefix",
        )
    objects = S3Objects(
        bucket,
        prefix.strip("/"),
        endpoint=config.endpoint or None,
        region=config.region or None,
        path_style=config.path_style,
    )
    try:
        yield objects
    finally:
        await objects.aclose()


def _beside(database: str) -> Path | None:
    """Directory for the objects of a database by default; None for a log in memory."""
    from app.events.url import database_path

    if database == "memory:":
        return None
    path = None if database.startswith("postgres") else database_path(database)
    return Path("everlog.objects") if path is None else path.with_name(path.name + ".objects")


def _directory(url: str) -> Path:
    scheme, colon, rest = url.partition(":")
    if not colon:
        return Path(url)
    if scheme == "file" and rest.startswith("///"):
        return Path(rest[2:])
    raise InputError(
        f"{url!r} is no place for objects",
        field="objects.url",
        hint="write a path, file:///path, or s3://bucket/prefix",
    )

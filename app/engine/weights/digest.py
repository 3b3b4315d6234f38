"""The digest that names a model's weights in the log."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from app.engine.hub import cache_dir

__all__ = ["digest"]


class _Known(msgspec.Struct, frozen=True, array_like=True):
    size: int
    mtime: int
    sha256: str


def digest(files: Sequence[Path]) -> str:
    """Hex sha256 of a file; of several files, of the lines ``name sha256`` in the given order.

    Hashing reads everything (0.1 s for 100 MB, a minute for a big model), so results are kept in
    the user's cache under path, size and time of modification.
    """
    store = cache_dir() / "digests.json"
    known = _read(store)
    before = dict(known)
    parts = [(file.name, _one(file, known)) for file in files]
    if known != before:
        _write(store, known)
    if len(parts) == 1:
        return parts[0][1]
    return hashlib.sha256("".join(f"{n} {d}\n" for n, d in parts).encode()).hexdigest()


def _one(file: Path, known: dict[str, _Known]) -> str:
    stat = file.stat()
    key = str(file.resolve())
    hit = known.get(key)
    if hit and (hit.size, hit.mtime) == (stat.st_size, stat.st_mtime_ns):
        return hit.sha256
    with file.open("rb") as stream:
        value = hashlib.file_digest(stream, "sha256").hexdigest()
    known[key] = _Known(stat.st_size, stat.st_mtime_ns, value)
    return value


def _read(store: Path) -> dict[str, _Known]:
    try:
        return msgspec.json.decode(store.read_bytes(), type=dict[str, _Known])
    except (OSError, msgspec.DecodeError):
        return {}


def _write(store: Path, known: dict[str, _Known]) -> None:
    try:  # a cache that cannot be written only costs time
        store.parent.mkdir(parents=True, exist_ok=True)
        fresh = store.with_suffix(".tmp")
        fresh.write_bytes(msgspec.json.encode(known))
        fresh.replace(store)
    except OSError:
        pass

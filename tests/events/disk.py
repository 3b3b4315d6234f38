"""A simulated disk for SQLite: what was not synced may be lost, in part and out of order.

It is an `apsw` VFS. Every file keeps what has reached the platter and the writes since the last
sync. A power cut keeps, of those writes, any subset, the last of them torn at a sector.
"""

from __future__ import annotations

import random
from typing import Any

import apsw

SECTOR = 512


class PowerCut(Exception):
    """The lights went out."""


class File:
    """Contents of one file: as programs see it, and as it would be after a power cut."""

    def __init__(self, durable: bytes = b"") -> None:
        self.durable = bytearray(durable)
        self.seen = bytearray(durable)
        self.unsynced: list[tuple[int, bytes] | int] = []  # a write, or the size of a truncation

    def write(self, offset: int, data: bytes) -> None:
        apply(self.seen, (offset, data))
        self.unsynced.append((offset, data))

    def truncate(self, size: int) -> None:
        apply(self.seen, size)
        self.unsynced.append(size)

    def sync(self) -> None:
        self.durable = bytearray(self.seen)
        self.unsynced.clear()

    def after_cut(self, rng: random.Random) -> bytes:
        """What the platter holds after a power cut."""
        image = bytearray(self.durable)
        keep = rng.choice((0.0, 0.3, 0.7, 1.0))
        for change in self.unsynced:
            if rng.random() >= keep:
                continue
            if isinstance(change, tuple) and rng.random() < 0.3:
                offset, data = change
                sectors = rng.randrange(len(data) // SECTOR + 1)
                change = (offset, data[: sectors * SECTOR])
            apply(image, change)
        return bytes(image)


def apply(image: bytearray, change: tuple[int, bytes] | int) -> None:
    if isinstance(change, int):
        del image[change:]
        return
    offset, data = change
    if len(image) < offset:
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data


class Disk(apsw.VFS):
    """Files in memory; `cut_after` writes and syncs the power fails."""

    def __init__(self, name: str, files: dict[str, bytes] | None = None) -> None:
        self.files = {path: File(data) for path, data in (files or {}).items()}
        self.operations = 0
        self.cut_after: int | None = None
        self.off = False
        self.name = name
        super().__init__(name, "")

    def step(self) -> None:
        if self.off:
            raise PowerCut
        self.operations += 1
        if self.cut_after is not None and self.operations > self.cut_after:
            self.off = True
            raise PowerCut

    def reboot(self, name: str, rng: random.Random) -> Disk:
        """The disk after the power came back."""
        return Disk(name, {path: file.after_cut(rng) for path, file in self.files.items()})

    def xOpen(self, name: Any, flags: list[int]) -> Handle:
        path = name if isinstance(name, (str, type(None))) else name.filename()
        flags[1] = flags[0]
        return Handle(self, self.files.setdefault(path or f"temporary {id(flags)}", File()))

    def xDelete(self, name: str, sync: bool) -> None:
        self.files.pop(name, None)

    def xAccess(self, name: str, flags: int) -> bool:
        return name in self.files

    def xFullPathname(self, name: str) -> str:
        return name


class Handle:
    """An open file."""

    def __init__(self, disk: Disk, file: File) -> None:
        self.disk, self.file = disk, file

    def xRead(self, amount: int, offset: int) -> bytes:
        return bytes(self.file.seen[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:
        self.disk.step()
        self.file.write(offset, bytes(data))

    def xTruncate(self, size: int) -> None:
        self.disk.step()
        self.file.truncate(size)

    def xSync(self, flags: int) -> None:
        self.disk.step()
        self.file.sync()

    def xFileSize(self) -> int:
        return len(self.file.seen)

    def xSectorSize(self) -> int:
        return SECTOR

    def xDeviceCharacteristics(self) -> int:
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE  # as SQLite assumes of real disks

    def xFileControl(self, op: int, pointer: int) -> bool:
        return False

    def xLock(self, level: int) -> None: ...

    def xUnlock(self, level: int) -> None: ...

    def xCheckReservedLock(self) -> bool:
        return False

    def xClose(self) -> None: ...

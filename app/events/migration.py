"""Migrations as files: numbered SQL, applied once, forward only, checked by their checksum."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from app.errors import StartupError

__all__ = ["Migration", "compare", "migrations"]

_NAME = re.compile(r"(\d{4})_(\w+)\.sql")


class Migration(msgspec.Struct, frozen=True):
    """One file: ``0001_log.sql`` has number 1 and name ``log``."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Checksum of the text."""
        return sha256(self.sql.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.number:04}_{self.name}"


def migrations(dialect: str = "sqlite", directory: Path | None = None) -> list[Migration]:
    """Read the migrations of a dialect in order.

    They lie in ``migrations/`` of a checkout, or in ``app/migrations/`` of an installed package.

    Raises:
        StartupError: The files are missing, or their numbers are not 1, 2, 3 ...

    """
    directory = directory or _directory(dialect)
    found = []
    for path in sorted(directory.glob("*.sql")):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append(Migration(int(match[1]), match[2], path.read_text("utf-8")))
    if not found or [m.number for m in found] != list(range(1, len(found) + 1)):
        raise StartupError(
            f"migrations in {directory} are not numbered 0001, 0002 ... without a gap",
            hint="reinstall everlog",
        )
    return found


def _directory(dialect: str) -> Path:
    app = Path(__file__).resolve().parent.parent
    for base in (app / "migrations", app.parent / "migrations"):
        if (base / dialect).is_dir():
            return base / dialect
    raise StartupError("the database migrations are missing", hint="reinstall everlog")


def compare(rows: Iterable[tuple[int, str, str]], wanted: Sequence[Migration]) -> list[Migration]:
    """Return the migrations that are not among the applied ones (number, name, checksum).

    Raises:
        StartupError: An applied migration was changed, or is newer than this code.

    """
    applied = {number: (name, digest) for number, name, digest in rows}
    known = {migration.number: migration for migration in wanted}
    for number, (name, digest) in applied.items():
        migration = known.get(number)
        if migration is None:
            raise StartupError(
                f"the database has migration {number:04}_{name}, which this version does not know",
                hint="it was written by a newer everlog: install that version or a later one",
            )
        if migration.sha256 != digest:
            raise StartupError(
                f"migration {migration} was changed after it was applied",
                hint="restore the original file; put changes into a new migration",
            )
    return [migration for migration in wanted if migration.number not in applied]

"""The log as JSON lines: one event a line, in order, for backup and for moving house.

A line holds the envelope, the payload verbatim under ``data``, and the salt, so that an imported
log has the same positions, the same leaf hashes, and its seals still hold. In place of the salt an
erased payload has its inner hash (`app.events.leaf`). A payload that does not fit on a line as it
is comes as base64 under ``raw``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from app.errors import InputError
from app.events.envelope import Event
from app.events.leaf import DIGEST, SALT
from app.events.logstore import LogStore
from app.events.store import StoreError

__all__ = ["export_events", "import_events"]

PAGE = 1_000

Progress = Callable[[int, int], None]


class _Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    seq: int
    stream: str
    version: int
    type: str
    schema: int = 1
    time: int
    actor: str
    request: str | None = None
    run: str | None = None
    cause: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    raw: str = ""
    salt: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Line).decode
_decode_any = msgspec.json.Decoder().decode


async def export_events(
    store: LogStore, file: BinaryIO, *, after: int = 0, progress: Progress | None = None
) -> int:
    """Write the events past ``after`` as JSON lines.

    Args:
        store: The log.
        file: Where to write.
        after: Last seq to leave out.
        progress: Called with events done and events in all.

    Returns:
        How many were written.

    Raises:
        StoreError: An event cannot be read.

    """
    end = await store.head()
    done, seq = 0, after
    while seq < end:
        rows = await store.rows(after=seq, limit=min(PAGE, end - seq))
        if not rows:
            break
        for row in rows:
            if isinstance(row, StoreError):
                raise StoreError(f"event {seq + 1}: {row.message}", hint="see: everlog verify")
            event, salt, _ = row
            file.write(_encode(_line(event, salt)) + b"\n")
            seq = event.seq
        done += len(rows)
        if progress is not None:
            progress(done, end - after)
    return done


async def import_events(store: LogStore, path: Path, *, progress: Progress | None = None) -> int:
    """Fill an empty log from JSON lines, positions and times included.

    The whole file is checked before anything is written.

    Args:
        store: An empty log.
        path: The file.
        progress: Called with lines done and lines in all.

    Returns:
        How many events were written.

    Raises:
        InputError: The log is not empty, or a line is malformed; the message names the line.

    """
    if await store.head():
        raise InputError("the log is not empty", hint="import into a new database")
    with path.open("rb") as file:
        total = _check(file)
        file.seek(0)
        done = 0
        for page in _pages(_parse(file)):
            await store.load([event for event, _ in page], [salt for _, salt in page])
            done += len(page)
            if progress is not None:
                progress(done, total)
    return done


def _line(event: Event, salt: bytes) -> _Line:
    fields: dict[str, Any] = msgspec.structs.asdict(event)
    data = fields.pop("data")
    if _fits(data):
        fields["data"] = msgspec.Raw(data)
    else:
        fields["raw"] = base64.b64encode(data).decode()
    return _Line(**fields, salt=salt.hex())


def _fits(data: bytes) -> bool:
    """Whether a payload survives as a JSON value on one line, byte for byte."""
    if b"\n" in data or b"\r" in data or data.strip() != data:
        return False
    try:
        _decode_any(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _check(lines: Iterable[bytes]) -> int:
    """Read all lines without keeping them; their number."""
    count = 0
    versions: dict[str, int] = {}
    for count, (event, _) in enumerate(_parse(lines), 1):
        version = versions[event.stream] = versions.get(event.stream, 0) + 1
        if event.seq != count or event.version != version:
            raise InputError(
                f"line {count}: expected seq {count} and version {version} of {event.stream}, "
                f"found seq {event.seq} and version {event.version}",
                hint="the file must hold a whole log from its first event",
            )
    return count


def _parse(lines: Iterable[bytes]) -> Iterator[tuple[Event, bytes]]:
    for number, text in enumerate(lines, 1):
        try:
            line = _decode(text)
            data = bytes(line.data) or base64.b64decode(line.raw, validate=True)
            if line.data and not _fits(data):
                raise ValueError("data is not JSON")
            salt = bytes.fromhex(line.salt)
            if len(salt) not in (SALT, DIGEST):
                raise ValueError(f"salt has {len(salt)} bytes")
        except (msgspec.DecodeError, ValueError, binascii.Error) as error:
            raise InputError(f"line {number}: {error}") from error
        fields = {name: getattr(line, name) for name in Event.__struct_fields__ if name != "data"}
        yield Event(**fields, data=data), salt


def _pages(events: Iterable[tuple[Event, bytes]]) -> Iterator[list[tuple[Event, bytes]]]:
    page: list[tuple[Event, bytes]] = []
    for item in events:
        page.append(item)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page

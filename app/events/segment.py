"""Segments: archived events as one self-describing, compressed, checked piece of bytes. Pure.

A segment is a valid ``.zst`` file: ``zstd -dc`` prints its events as JSON lines, sorted by ``seq``,
each with its salt and leaf. What only a program needs stands in skippable frames (RFC 8878,
§3.1.2), which decompressors pass over::

    frame "head"    JSON: format, incarnation of the log
    block           zstd frame: JSON lines of up to `BLOCK_EVENTS` events or `BLOCK_BYTES` bytes
    ...
    frame "index"   zstd of JSON: where each block is, its SHA-256, its range; and for each stream
                    its range of versions and the blocks that have them
    frame "foot"    place, size and SHA-256 of the frame before it

A reader needs foot, index, and the blocks it wants; each is checked before it is used.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec
import zstandard

from app.events.envelope import Event
from app.events.store import StoreError

if TYPE_CHECKING:
    from app.events.backend import Row

__all__ = ["DamagedSegment", "Index", "Reader", "Segment", "Span", "decode", "encode", "summary"]

FORMAT = "everlog segment 1"
BLOCK_EVENTS = 2_048
BLOCK_BYTES = 1 << 20
LEVEL = 6
"""Of zstd. Salts and leaves, 48 random bytes an event, weigh most; more effort gains nothing."""

MOST = 1 << 31
"""Most bytes a block may claim to have; more is damage."""

_SKIP = struct.Struct("<II")  # magic, size
_FOOT = struct.Struct("<QI32s")  # offset of the index frame's content, its size, its SHA-256
_MAGIC = 0x184D2A5E


class DamagedSegment(StoreError):
    """These bytes are not a whole segment."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"an archived segment is damaged: {what}",
            hint="bring its object back from a backup of the object store",
        )


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Where a stream's events are: versions ``first..last`` (with gaps), in these blocks."""

    first: int
    last: int
    events: int
    blocks: tuple[int, ...] = ()


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A segment as the log knows it.

    Attributes:
        object: Key in the object store.
        sha256: Of its bytes, hex.
        bytes: How many they are.
        first: Lowest seq in it.
        last: Highest seq in it; between the two only some are.
        events: How many.
        types: Event types in it, sorted.
        streams: Spans by stream; empty where they were not asked for.

    """

    object: str
    sha256: str
    bytes: int
    first: int
    last: int
    events: int
    types: tuple[str, ...]
    streams: dict[str, Span] = {}


class Block(msgspec.Struct, frozen=True, array_like=True):
    """Where a block is, and what is in it."""

    offset: int
    size: int
    raw: int
    sha256: str
    events: int
    first: int
    last: int


class Index(msgspec.Struct, frozen=True):
    """What a segment says of itself."""

    events: int
    types: tuple[str, ...]
    blocks: tuple[Block, ...]
    streams: dict[str, Span]


class _Head(msgspec.Struct, frozen=True):
    format: str
    incarnation: str


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
    raw: str | None = None  # base64, where the payload is no JSON on one line
    salt: str
    leaf: str


_encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode
_decode_lines = msgspec.json.Decoder(_Line).decode_lines


# ------------------------------------------------------------------------------------- writing


def encode(rows: Sequence[Row], incarnation: str) -> bytes:
    """Make a segment of rows.

    Args:
        rows: Events with salts and leaves, at least one, in any order.
        incarnation: Of the log they are from.

    """
    ordered = sorted(rows, key=lambda row: row[0].seq)
    out = bytearray(_skippable(_encode(_Head(FORMAT, incarnation))))
    blocks: list[Block] = []
    spans: dict[str, Span] = {}
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    for chunk, raw in _chunks(ordered):
        packed = compressor.compress(raw)
        ends = chunk[0][0].seq, chunk[-1][0].seq
        digest = sha256(packed).hexdigest()
        for event, _, _ in chunk:
            _extend(spans, event, len(blocks))
        blocks.append(Block(len(out), len(packed), len(raw), digest, len(chunk), *ends))
        out += packed
    types = tuple(sorted({event.type for event, _, _ in ordered}))
    index = compressor.compress(_encode(Index(len(ordered), types, tuple(blocks), spans)))
    foot = _FOOT.pack(len(out) + _SKIP.size, len(index), sha256(index).digest())
    return bytes(out + _skippable(index) + _skippable(foot))


def summary(data: bytes, key: str) -> Segment:
    """Describe a segment for the log's own table."""
    index = Reader(data).index
    return Segment(
        object=key,
        sha256=sha256(data).hexdigest(),
        bytes=len(data),
        first=index.blocks[0].first,
        last=index.blocks[-1].last,
        events=index.events,
        types=index.types,
        streams=index.streams,
    )


def _skippable(content: bytes) -> bytes:
    return _SKIP.pack(_MAGIC, len(content)) + content


def _chunks(rows: Sequence[Row]) -> Iterator[tuple[list[Row], bytes]]:
    """Cut rows into blocks; gives each with its JSON lines."""
    chunk: list[Row] = []
    raw = bytearray()
    for row in rows:
        line = _encode(_line(row)) + b"\n"
        if chunk and (len(chunk) == BLOCK_EVENTS or len(raw) + len(line) > BLOCK_BYTES):
            yield chunk, bytes(raw)
            chunk, raw = [], bytearray()
        chunk.append(row)
        raw += line
    if chunk:
        yield chunk, bytes(raw)


def _extend(spans: dict[str, Span], event: Event, block: int) -> None:
    span = spans.get(event.stream)
    if span is None:
        spans[event.stream] = Span(event.version, event.version, 1, (block,))
        return
    blocks = span.blocks if span.blocks[-1] == block else (*span.blocks, block)
    first, last = min(span.first, event.version), max(span.last, event.version)
    spans[event.stream] = Span(first, last, span.events + 1, blocks)


def _line(row: Row) -> _Line:
    event, salt, leaf = row
    fields: dict[str, Any] = msgspec.structs.asdict(event)
    data = fields.pop("data")
    if _is_json(data):
        fields["data"] = msgspec.Raw(data)
    else:
        fields["raw"] = base64.b64encode(data).decode()
    return _Line(**fields, salt=salt.hex(), leaf=leaf.hex())


def _is_json(data: bytes) -> bool:
    """Whether a payload survives as a JSON value on one line, byte for byte."""
    if b"\n" in data or b"\r" in data or data.strip() != data:
        return False
    try:
        _decode_any(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


# ------------------------------------------------------------------------------------- reading


class Reader:
    """A segment's bytes, read as asked.

    Raises:
        DamagedSegment: They are not a whole segment (from every method).

    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.incarnation = self._head().incarnation
        self.index = self._index()

    def rows(self, block: int) -> list[Row]:
        """Rows of a block, by ``seq``."""
        place = self.index.blocks[block]
        packed = self.data[place.offset : place.offset + place.size]
        if sha256(packed).hexdigest() != place.sha256 or place.raw > MOST:
            raise DamagedSegment(f"block {block} does not match its SHA-256")
        try:
            raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=place.raw)
            rows = list(map(_row, _decode_lines(raw)))
        except (zstandard.ZstdError, msgspec.DecodeError, ValueError) as error:
            raise DamagedSegment(f"block {block}: {error}") from error
        if len(rows) != place.events:
            raise DamagedSegment(f"block {block} has {len(rows)} events, not {place.events}")
        return rows

    def blocks(self, after: int, until: int, stream: str | None) -> list[int]:
        """Blocks that may have events with ``after < position <= until``, in order."""
        if stream is None:
            places = enumerate(self.index.blocks)
            return [n for n, place in places if place.last > after and place.first <= until]
        span = self.index.streams.get(stream)
        if span is None or span.last <= after or span.first > until:
            return []
        return list(span.blocks)

    def _head(self) -> _Head:
        content = self._skipped(0)
        try:
            head = msgspec.json.decode(content, type=_Head)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DamagedSegment("it does not begin like one") from error
        if head.format != FORMAT:
            raise DamagedSegment(f"it is {head.format!r}, not {FORMAT!r}")
        return head

    def _index(self) -> Index:
        foot = self._skipped(len(self.data) - _FOOT.size - _SKIP.size)
        if len(foot) != _FOOT.size:
            raise DamagedSegment("it does not end like one")
        offset, size, digest = _FOOT.unpack(foot)
        packed = self._skipped(offset - _SKIP.size)  # its frame, too, must be whole
        if len(packed) != size or sha256(packed).digest() != digest:
            raise DamagedSegment("its index does not match its SHA-256")
        try:
            raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=MOST)
            return msgspec.json.decode(raw, type=Index)
        except (zstandard.ZstdError, msgspec.DecodeError) as error:
            raise DamagedSegment(f"its index: {error}") from error

    def _skipped(self, offset: int) -> bytes:
        """Content of the skippable frame at an offset."""
        frame = self.data[max(0, offset) : offset + _SKIP.size] if offset >= 0 else b""
        if len(frame) != _SKIP.size:
            raise DamagedSegment("it is cut off")
        magic, size = _SKIP.unpack(frame)
        content = self.data[offset + _SKIP.size : offset + _SKIP.size + size]
        if magic != _MAGIC or len(content) != size:
            raise DamagedSegment("it is cut off")
        return content


def decode(data: bytes) -> list[Row]:
    """All rows of a segment, by ``seq``."""
    reader = Reader(data)
    return [row for n in range(len(reader.index.blocks)) for row in reader.rows(n)]


def _row(line: _Line) -> Row:
    data = bytes(line.data) if line.raw is None else base64.b64decode(line.raw, validate=True)
    event = Event(
        seq=line.seq,
        stream=line.stream,
        version=line.version,
        type=line.type,
        schema=line.schema,
        time=line.time,
        actor=line.actor,
        request=line.request,
        run=line.run,
        cause=line.cause,
        data=data,
    )
    return event, bytes.fromhex(line.salt), bytes.fromhex(line.leaf)

"""Segments: what goes in comes out, and damage of any byte is noticed."""

from __future__ import annotations

import io
import json
import os

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from app.events import segment as module
from app.events.backend import Row
from app.events.envelope import Event
from app.events.leaf import leaves
from app.events.segment import DamagedSegment, Reader, decode, encode, summary


def row(seq: int, data: bytes = b'{"a":1}', **fields: object) -> Row:
    values: dict[str, object] = {
        "seq": seq,
        "stream": "thread/a",
        "version": seq,
        "type": "tokens.generated",
        "schema": 1,
        "time": 1_700_000_000_000_000_000 + seq,
        "actor": "engine:w",
        "request": None,
        "run": None,
        "cause": None,
        "data": data,
    }
    event = Event(**(values | fields))  # type: ignore[arg-type]
    salt = os.urandom(16)
    return event, salt, leaves([event], [salt])[0]


@st.composite
def many_rows(draw: st.DrawFn) -> list[Row]:
    seqs = draw(st.lists(st.integers(1, 10_000), min_size=1, max_size=60, unique=True))
    versions: dict[str, int] = {}
    rows = []
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    payload = st.one_of(
        st.binary(max_size=40),
        st.dictionaries(text, st.integers() | text, max_size=3).map(
            lambda value: json.dumps(value).encode()
        ),
        st.sampled_from([b"null", b" {} ", b"{\n}", b"", b'"\\ud800"', b"{}\r"]),
    )
    for seq in sorted(seqs):
        stream = draw(st.sampled_from(["thread/a", "thread/b", "log", "request/ü"]))
        versions[stream] = versions.get(stream, 0) + draw(st.integers(1, 3))
        options = {
            "stream": stream,
            "version": versions[stream],
            "type": draw(st.sampled_from(["tokens.generated", "step.delta", "x.y"])),
            "schema": draw(st.integers(1, 3)),
            "actor": draw(text),
            "request": draw(st.none() | text),
            "cause": draw(st.none() | text),
        }
        made = row(seq, draw(payload), **options)
        if draw(st.booleans()):
            made = (made[0], os.urandom(32), made[2])  # redacted
        rows.append(made)
    return draw(st.permutations(rows))


@settings(deadline=None, max_examples=150)
@given(rows=many_rows(), block=st.sampled_from([1, 3, 7, 2_048]), size=st.sampled_from([1, 500]))
def test_what_goes_in_comes_out(rows: list[Row], block: int, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_EVENTS", block)
        patch.setattr(module, "BLOCK_BYTES", size * 100)
        data = encode(rows, "life")
    by_seq = sorted(rows, key=lambda row: row[0].seq)
    assert decode(data) == by_seq
    reader, made = Reader(data), summary(data, "key")
    assert reader.incarnation == "life"
    assert (made.events, made.bytes, made.object) == (len(rows), len(data), "key")
    assert (made.first, made.last) == (by_seq[0][0].seq, by_seq[-1][0].seq)
    assert set(made.types) == {event.type for event, _, _ in rows}
    for stream in {event.stream for event, _, _ in rows}:
        wanted = [r for r in by_seq if r[0].stream == stream]
        span = made.streams[stream]
        assert (span.first, span.last) == (wanted[0][0].version, wanted[-1][0].version)
        found = [
            r
            for n in reader.blocks(0, span.last, stream)
            for r in reader.rows(n)
            if r[0].stream == stream
        ]
        assert found == wanted
    middle = by_seq[len(by_seq) // 2][0].seq
    later = [r for n in reader.blocks(middle - 1, 10_000, None) for r in reader.rows(n)]
    assert [r for r in by_seq if r[0].seq >= middle] == [r for r in later if r[0].seq >= middle]


def test_any_tool_can_read_one() -> None:
    rows = [row(i, json.dumps({"text": "é" * i}).encode()) for i in range(1, 50)]
    data = encode(rows, "life")
    with zstandard.ZstdDecompressor().stream_reader(
        io.BytesIO(data), read_across_frames=True
    ) as stream:
        lines = stream.read().splitlines()
    assert [json.loads(line)["data"]["text"] for line in lines] == ["é" * i for i in range(1, 50)]


@settings(deadline=None, max_examples=300)
@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_damage_of_any_byte_is_noticed(place: float, mask: int) -> None:
    data = bytearray(SAMPLE)
    at = int(place * len(data))
    data[at] ^= mask
    with pytest.raises(DamagedSegment) as caught:
        decoded, head = decode(bytes(data)), Reader(bytes(data)).incarnation
        if decoded == SAMPLE_ROWS and head != "life":
            raise DamagedSegment("only its name is another")
    assert "backup" in str(caught.value.hint)


@settings(deadline=None, max_examples=100)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_segment_cut_off_is_noticed(cut: float) -> None:
    with pytest.raises(DamagedSegment):
        decode(SAMPLE[: int(cut * len(SAMPLE))])


@pytest.mark.parametrize("data", [b"", b"x", b"not a segment at all " * 100, bytes(1000)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(DamagedSegment):
        Reader(data)


def test_it_is_small() -> None:
    text = b'{"request":"0193","epoch":1,"batch":%d,"index":%d,"tokens":[1,2,3],"text":" the"}'
    rows = [row(i, text % (i, 3 * i)) for i in range(1, 5_000)]
    # Salt and leaf are 48 random bytes that nothing makes smaller.
    assert len(encode(rows, "life")) < 5_000 * 75


SAMPLE_ROWS = [row(i, os.urandom(30) if i % 2 else b'{"n":%d}' % i) for i in range(1, 20)]
SAMPLE = encode(SAMPLE_ROWS, "life")

"""Frames in and out, and errors that name the field."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.transport import protocol as wire
from app.transport.protocol import FrameError, decode_client, decode_server, encode

U = "019ab3c0-0000-7000-8000-000000000000"


@pytest.mark.parametrize(
    ("data", "code", "field", "id"),
    [
        ("{", "bad_frame", None, None),
        ("", "bad_frame", None, None),
        ("[]", "bad_frame", None, None),
        ('"hello"', "bad_frame", None, None),
        ("{}", "bad_frame", "t", None),
        ('{"t":5}', "bad_frame", "t", None),
        ('{"t":"nope","id":"u"}', "bad_frame", "t", "u"),
        ('{"t":"edit","id":"u","whatever":1}', "unsupported", None, "u"),
        ('{"t":"open"}', "bad_field", "thread", None),
        ('{"t":"open","thread":"a/b"}', "bad_field", "thread", None),
        ('{"t":"open","thread":"a\\n"}', "bad_field", "thread", None),
        ('{"t":"open","thread":"a","after":-1}', "bad_field", "after", None),
        ('{"t":"open","thread":"a","after":1.5}', "bad_field", "after", None),
        ('{"t":"open","thread":"a","after":1e400}', "bad_field", "after", None),
        ('{"t":"open","thread":"a","afterr":1}', "bad_field", "afterr", None),
        ('{"t":"post","id":"u","thread":"a","content":"x"}', "bad_field", "id", "u"),
        (f'{{"t":"post","id":"{U}","thread":"a"}}', "bad_field", "content", U),
        (f'{{"t":"post","id":"{U}","thread":"a","content":""}}', "bad_field", "content", U),
        (f'{{"t":"post","id":"{U}","thread":"a","content":7}}', "bad_field", "content", U),
        (
            f'{{"t":"feedback","id":"{U}","thread":"a","message":"{U}","value":2}}',
            "bad_field",
            "value",
            U,
        ),
        ('{"t":"hello","protocol":"\\ud800"}', "bad_frame", None, None),
        ("\ud800", "bad_frame", None, None),
        ("[" * 100_000, "bad_frame", None, None),
        ('{"x":' * 100_000, "bad_frame", None, None),
    ],
)
def test_refusals_name_the_field(data: str, code: str, field: str | None, id: str | None) -> None:
    with pytest.raises(FrameError) as caught:
        decode_client(data)
    error = caught.value
    assert (error.code, error.field, error.id) == (code, field, id), error
    assert error.reason and "$" not in error.reason


def test_long_content_is_refused_by_its_field() -> None:
    frame = {"t": "post", "id": U, "thread": "a", "content": "é" * 100_001}
    with pytest.raises(FrameError) as caught:
        decode_client(msgspec.json.encode(frame))
    assert caught.value.field == "content"
    frame["content"] = "é" * 100_000
    assert isinstance(decode_client(msgspec.json.encode(frame)), wire.Post)


def test_newer_hello_gets_in_newer_commands_do_not() -> None:
    assert decode_client('{"t":"hello","protocol":"x","credit":5}') == wire.Hello(protocol="x")
    with pytest.raises(FrameError, match="attachments"):
        decode_client(f'{{"t":"post","id":"{U}","thread":"a","content":"x","attachments":["f"]}}')


@given(st.one_of(st.text(), st.binary(max_size=64)))
def test_nothing_else_is_ever_raised(data: str | bytes) -> None:
    try:
        decode_client(data)
    except FrameError as error:
        encode(wire.Refuse(id=error.id, code=error.code, message=error.reason, field=error.field))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=6,
)
keys = st.sampled_from(["t", "id", "thread", "after", "content", "message", "value", "n"])
kinds = st.sampled_from(["hello", "open", "post", "stop", "feedback", "ping", "edit", "?"])


@given(kinds, st.dictionaries(keys, json_values))
def test_any_object_is_a_frame_or_refused(kind: str, frame: dict[str, object]) -> None:
    try:
        decode_client(msgspec.json.encode({**frame, "t": kind}))
    except FrameError as error:
        assert error.code in ("bad_frame", "bad_field", "unsupported")


@pytest.mark.parametrize(
    "frame",
    [
        wire.Ack(id=U, thread="a", version=3, seq=9),
        wire.Refuse(id=None, code="bad_frame", message="no", field=None),
        wire.Live(thread="a", version=3),
        wire.Threads(head=4),
        wire.Pong(n=1, heads={"a": 3}),
        wire.Notice(level="error", code="draining", message="bye"),
        wire.Reset(thread="a", version=3, reason="ahead", state=msgspec.Raw(b'{"id":"a"}')),
    ],
)
def test_server_frames_survive_the_wire(frame: wire.ServerFrame) -> None:
    data = encode(frame)
    assert msgspec.json.decode(data)["t"] == type(frame).__name__.lower()
    assert encode(decode_server(data)) == data

"""Payloads: round trips, unknown types, old and new schemas."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.events import upcast
from app.events.catalogue import CATALOGUE, Entry, MessagePosted, Payload, TokensGenerated
from app.events.codec import PayloadError, Unknown, decode, new
from app.events.envelope import NewEvent

texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(content=texts, metadata=st.dictionaries(texts, st.none() | st.booleans() | texts))
def test_round_trip(content: str, metadata: dict[str, Any]) -> None:
    payload = MessagePosted(message="m", role="user", content=content, metadata=metadata)
    event = new(payload, actor="user:local", run="r")
    assert (event.type, event.schema, event.actor, event.run) == (
        "message.posted",
        1,
        "user:local",
        "r",
    )
    assert decode(event) == payload
    assert b"\n" not in event.data


def test_defaults_are_not_stored() -> None:
    event = new(TokensGenerated(request="r", epoch=1, batch=0, index=0, tokens=[1], text="a"))
    assert msgspec.json.decode(event.data).keys() == {
        "request",
        "epoch",
        "batch",
        "index",
        "tokens",
        "text",
    }


def test_unknown_types_and_newer_schemas_are_passed_on() -> None:
    unheard = NewEvent(type="moon.landed", schema=3, data=b'{"crater":"x"}')
    assert decode(unheard) == Unknown("moon.landed", 3, {"crater": "x"})
    newer = NewEvent(type="message.posted", schema=99, data=b'{"parts":[]}')
    assert decode(newer) == Unknown("message.posted", 99, {"parts": []})


def test_unknown_fields_are_ignored() -> None:
    event = NewEvent(type="thread.renamed", data=b'{"title":"t","later":1}')
    assert decode(event).title == "t"  # type: ignore[union-attr]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"title":1}', b"{}", b'{"title":"\xff"}'])
def test_malformed_payloads(data: bytes) -> None:
    with pytest.raises(PayloadError, match=r"thread\.renamed"):
        decode(NewEvent(type="thread.renamed", data=data))


class Greeted(Payload, frozen=True, kw_only=True):
    """A made-up type at its third schema."""

    name: str
    words: list[str]


@pytest.fixture
def greeted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "greeting.sent", Entry(Greeted, "greeting.sent", 3))
    monkeypatch.setattr(upcast, "UPCASTERS", dict(upcast.UPCASTERS))

    @upcast.upcaster("greeting.sent", 1)
    def split(data: dict[str, Any]) -> dict[str, Any]:
        return {"who": data["who"], "words": data["text"].split()}

    @upcast.upcaster("greeting.sent", 2)
    def rename(data: dict[str, Any]) -> dict[str, Any]:
        return {"name": data.pop("who"), **data}


@pytest.mark.usefixtures("greeted")
def test_old_schemas_are_lifted_step_by_step() -> None:
    lifted = Greeted(name="ada", words=["good", "day"])
    for schema, data in (
        (1, b'{"who":"ada","text":"good day"}'),
        (2, b'{"who":"ada","words":["good","day"]}'),
        (3, b'{"name":"ada","words":["good","day"]}'),
    ):
        assert decode(NewEvent(type="greeting.sent", schema=schema, data=data)) == lifted
    with pytest.raises(ValueError, match="already"):
        upcast.upcaster("greeting.sent", 1)(lambda data: data)


@pytest.mark.usefixtures("greeted")
def test_a_missing_upcaster_is_named() -> None:
    event = NewEvent(type="greeting.sent", schema=0, data=b"{}")
    with pytest.raises(PayloadError, match="schema 0 to 1"):
        decode(event)

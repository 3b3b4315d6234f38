"""What is left of an event: no content, and everything that folds need."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import EverlogError
from app.events import catalogue as c
from app.events.catalogue import CATALOGUE, Payload, event_type
from app.events.codec import decode
from app.events.envelope import Event
from app.events.redaction import KEEP, MARK, RULES, remainder

SECRET = "Zanzibar"


def event(type: str, data: bytes, schema: int = 1) -> Event:
    return Event(
        seq=7,
        stream="thread/t",
        version=3,
        type=type,
        schema=schema,
        time=1,
        actor="user:u",
        request="r",
        run=None,
        cause=None,
        data=data,
    )


def stored(payload: Payload) -> Event:
    entry = event_type(payload)
    return event(entry.type, msgspec.json.encode(payload), entry.schema)


def structs(hint: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        yield hint
        for field in msgspec.structs.fields(hint):
            yield from structs(field.type)
    for arg in typing.get_args(hint):
        yield from structs(arg)


def test_every_field_has_a_rule() -> None:
    found = {s for entry in CATALOGUE.values() for s in structs(entry.payload)}
    for struct in found:
        names = {field.name for field in msgspec.structs.fields(struct)}
        assert RULES[struct].keys() == names, f"say in RULES what {struct.__name__} keeps"
    assert RULES.keys() == found


# ----------------------------------------------------------------- any payload of any type


def values(hint: Any, secret: bool) -> st.SearchStrategy[Any]:
    """Values of a field; those that are content say the secret."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values(arg, secret) for arg in args])
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return payloads(hint)
    if origin is dict:
        key = values(int, True) if args[0] is int else st.just(SECRET)
        return st.dictionaries(key, values(args[1], secret), max_size=1)
    if origin is tuple and args[-1] is not Ellipsis:
        return st.tuples(*[values(arg, secret) for arg in args])
    if origin in (list, tuple):
        return st.lists(values(args[0], secret), max_size=3)
    if hint is Any:
        return st.sampled_from([SECRET, [SECRET], {SECRET: SECRET}, 5, None])
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: st.sampled_from([SECRET, f"so, {SECRET}!"] if secret else ["a", "b"]),
        int: st.just(424242) if secret else st.integers(0, 9),
        float: st.just(424242.5) if secret else st.floats(0, 1),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return plain[hint]


def payloads(struct: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    fields = {
        field.name: values(field.type, RULES[struct][field.name] is not KEEP)
        for field in msgspec.structs.fields(struct)
    }
    return st.fixed_dictionaries(fields).map(lambda given: msgspec.convert(given, struct))


anything = st.sampled_from([entry.payload for entry in CATALOGUE.values()]).flatmap(payloads)


def kept(value: Any, struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {n: getattr(value, n) for n, rule in RULES[struct].items() if rule is KEEP}


@given(anything)
def test_no_content_is_left_and_everything_else_stays(payload: Payload) -> None:
    before = stored(payload)
    data = remainder(before)
    if data is None:
        assert SECRET.encode() not in before.data
        return
    assert SECRET.encode() not in data and b"424242" not in data
    after = event(before.type, data)
    left = decode(after)
    assert kept(left, type(payload)) == kept(payload, type(payload))
    assert remainder(after) is None


# --------------------------------------------------------------------------------- examples


def test_what_people_see_says_so() -> None:
    posted = stored(c.MessagePosted(message="m", role="user", content=SECRET, author=SECRET))
    assert remainder(posted) == (b'{"message":"m","role":"user","content":"%s"}' % MARK.encode())


def test_which_prompt_was_given_can_still_be_seen() -> None:
    turns = [c.ChatMessage(role="system", content=SECRET), c.ChatMessage(role="user", content="x")]
    params = c.SamplingParams(stop=(SECRET,), seed=3)
    queued = stored(c.RequestQueued(request="r", params=params, messages=turns))
    left = decode(event("request.queued", remainder(queued) or b""))
    assert isinstance(left, c.RequestQueued) and left.messages is not None
    assert [(m.role, m.content) for m in left.messages] == [("system", MARK), ("user", MARK)]
    assert (left.params.stop, left.params.seed) == ((), 3)


def test_a_content_that_was_absent_stays_absent() -> None:
    """No text of its own: the message's text is its request's."""
    assert remainder(stored(c.MessageCompleted(message="m"))) is None
    assert remainder(stored(c.RequestCancelled(request="r"))) is None


def test_fields_that_no_rule_knows_go() -> None:
    data = b'{"run":"r","note":"%s"}' % SECRET.encode()
    assert remainder(event("run.stopped", data)) == b'{"run":"r"}'


@pytest.mark.parametrize("data", [b'{"a":1}', b"not json", b"", b"\xff", b"[]", b'"text"'])
@pytest.mark.parametrize("type", ["odd.one", "message.posted"])
def test_nothing_is_left_of_what_cannot_be_read(type: str, data: bytes) -> None:
    assert remainder(event(type, data)) == b"{}"
    assert remainder(event(type, b"{}")) is None


def test_a_newer_schema_is_refused() -> None:
    with pytest.raises(EverlogError, match=r"event 7 .*newer than this"):
        remainder(event("message.posted", b"{}", schema=99))


def test_what_the_log_says_of_itself_stays() -> None:
    for payload in (
        c.LogSealed(first=1, last=2, merkle="a", previous="b", root="c"),
        c.LogRedacted(seqs=[1], left=["a"], reason="asked"),
        c.LogArchived(first=1, last=2, object="o", sha256="s"),
        c.LogRestored(first=1, last=2, object="o", events=2),
    ):
        assert remainder(stored(payload)) is None

"""Tool calls in an answer's text, however it is cut into pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.transport.openai.calls import Bare, Called, Delta, Forced, Parser, Tagged, parser

NAMES = frozenset({"weather", "add"})
WEATHER = '{"name": "weather", "arguments": {"city": "Paris"}}'
ADD = '{"name": "add", "arguments": {"a": 1, "b": [2, 3]}}'
CALLED = Called("weather", '{"city": "Paris"}')
ADDED = Called("add", '{"a": 1, "b": [2, 3]}')


def read(reader: Parser, pieces: list[str]) -> list[Delta]:
    """All deltas, with texts that follow each other joined."""
    found: list[Delta] = []
    deltas = [delta for piece in pieces for delta in reader.push(piece)] + reader.finish()
    for delta in deltas:
        assert delta != ""
        if isinstance(delta, str) and found and isinstance(found[-1], str):
            found[-1] += delta
        else:
            found.append(delta)
    return found


TAGGED = [
    ("just text", ["just text"]),
    ("a < b and <tool", ["a < b and <tool"]),
    (f"<tool_call>\n{WEATHER}\n</tool_call>", [CALLED]),
    (f"Let me see.\n\n<tool_call>{WEATHER}</tool_call>\n", ["Let me see.", CALLED]),
    (f"<tool_call>{WEATHER}</tool_call>\n<tool_call>{ADD}</tool_call>", [CALLED, ADDED]),
    (f"<tool_call>{WEATHER}</tool_call> then", [CALLED, " then"]),
    (f"<tool_call>\n{WEATHER}", [CALLED]),
    ("<tool_call>{not json}</tool_call>", ["<tool_call>{not json}</tool_call>"]),
    ("<tool_call>{", ["<tool_call>{"]),
    (
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        ['<tool_call>{"name": "other", "arguments": {}}</tool_call>'],
    ),
]


@pytest.mark.parametrize(("text", "expected"), TAGGED)
def test_calls_between_tags(text: str, expected: list[Delta]) -> None:
    for pieces in ([text], list(text), [text[i : i + 3] for i in range(0, len(text), 3)]):
        assert read(Tagged(NAMES), pieces) == expected


def test_text_is_not_held_back_for_long() -> None:
    reader = Tagged(NAMES)
    assert reader.push("Hello") == ["Hello"]
    assert reader.push(" <") == []
    assert reader.push("b>") == [" <b>"]


LLAMA = [
    ('{"name": "weather", "parameters": {"city": "Paris"}}', [CALLED]),
    (f"<|python_tag|>{WEATHER}; {ADD}", [CALLED, ADDED]),
    ("It is {sunny}", ["It is {sunny}"]),
    ('{"city": "Paris"}', ['{"city": "Paris"}']),
    ("  ", ["  "]),
]


@pytest.mark.parametrize(("text", "expected"), LLAMA)
def test_answers_that_are_calls(text: str, expected: list[Delta]) -> None:
    for pieces in ([text], list(text)):
        assert read(Bare(NAMES), pieces) == expected


def test_answers_that_were_held_to_a_schema() -> None:
    assert read(Forced(NAMES), [f"[{WEATHER}, ", f"{ADD}]"]) == [CALLED, ADDED]
    assert read(Forced(NAMES), [WEATHER]) == [CALLED]
    assert read(Forced(NAMES), [WEATHER[:20]]) == [WEATHER[:20]]  # cut off by max_tokens


def test_the_parser_goes_by_the_family() -> None:
    assert isinstance(parser(NAMES, forced=False, model="Llama-3.2-1B-Instruct"), Bare)
    assert isinstance(parser(NAMES, forced=False, model="smollm2-135m-instruct"), Tagged)
    assert isinstance(parser(NAMES, forced=True, model=None), Forced)
    assert read(parser(frozenset(), forced=False, model=None), ["<tool_call>"]) == ["<tool_call>"]


FRAGMENTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", WEATHER, ADD, "<tool_", " ", "\n", "text", "<", "{", "}"]
)


@given(st.lists(FRAGMENTS | st.text(max_size=5), max_size=8), st.data())
def test_it_does_not_matter_how_text_is_cut(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(Tagged(NAMES), pieces) == read(Tagged(NAMES), [text])
    assert read(Bare(NAMES), pieces) == read(Bare(NAMES), [text])


@given(st.lists(FRAGMENTS | st.text(max_size=5), max_size=8))
def test_nothing_is_lost(parts: list[str]) -> None:
    text = "".join(parts)
    kept = "".join(
        delta if isinstance(delta, str) else delta.name for delta in read(Tagged(NAMES), [text])
    )
    letters = [c for c in "xyz" if c in text.replace(WEATHER, "").replace(ADD, "")]
    assert all(letter in kept for letter in letters)
    for delta in read(Tagged(NAMES), [text]):
        if isinstance(delta, Called):
            assert delta.name in NAMES
            assert isinstance(json.loads(delta.arguments), dict)

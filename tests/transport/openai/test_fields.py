"""What is taken, passed over and refused, and how errors name it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from app.transport.openai.chat import ChatBody
from app.transport.openai.chat import plan as chat_plan
from app.transport.openai.completions import CompletionBody
from app.transport.openai.completions import plan as completion_plan
from app.transport.openai.errors import ApiError
from app.transport.openai.fields import IGNORED, REFUSED, parse

HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> Any:
    """The plan for a chat completion."""
    body, _ = parse(msgspec.json.encode({"messages": HELLO, **fields}), ChatBody)
    return chat_plan(body, deadline=None, origin={})


def completion(**fields: Any) -> Any:
    """The requests for a completion."""
    body, _ = parse(msgspec.json.encode({"prompt": "Hello", **fields}), CompletionBody)
    return completion_plan(body, deadline=None, origin={})


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"1", b'"x"', b"\xff", b"null", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        parse(data, ChatBody)
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


def test_unknown_fields_are_passed_over_and_named() -> None:
    data = msgspec.json.encode(
        {"messages": HELLO, "store": True, "my_field": 1, "nothing": None, "bad,\nname": 1}
    )
    _, unused = parse(data, ChatBody)
    assert unused == ["store", "my_field", "bad??name"]


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - {"prompt"}))
def test_what_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(ApiError) as refused:
        chat(**{name: 2})
    assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")
    for nothing in (None, False, [], {}):
        chat(**{name: nothing})


def test_null_means_absent() -> None:
    fields = {name: None for name in ChatBody.__struct_fields__ if name != "messages"}
    assert chat(**fields).requests[0].params.temperature == 1.0


def test_no_field_is_both() -> None:
    assert not IGNORED.keys() & REFUSED.keys()
    known = {*ChatBody.__struct_fields__, *CompletionBody.__struct_fields__}
    assert not known & IGNORED.keys()
    assert not known & REFUSED.keys() - {"prompt"}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "x"}, "messages"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": "[1"}}],
                }
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"stop": [""]}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        "response_format.json_schema.schema",
    ),
    ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice"),
    ({"structured_outputs": {"xml": "x"}}, "structured_outputs.xml"),
    ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=[str(fields) for fields, _ in WRONG])
def test_errors_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        chat(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], [-1], [1.5], {}, 1, [["a"]], [True]])
def test_prompts_that_are_none(prompt: Any) -> None:
    with pytest.raises(ApiError) as refused:
        completion(prompt=prompt)
    assert refused.value.param == "prompt"


def test_prompts_in_every_form() -> None:
    assert [r.text for r in completion(prompt="a")] == ["a"]
    assert [r.text for r in completion(prompt=["a", "b"], n=2)] == ["a", "a", "b", "b"]
    assert [r.prompt for r in completion(prompt=[1, 2])] == [[1, 2]]
    assert [r.prompt for r in completion(prompt=[[1, 2], [3]])] == [[1, 2], [3]]


def test_choices_have_seeds_of_their_own() -> None:
    requests = chat(n=3, seed=7).requests
    assert [r.params.seed for r in requests] == [7, 8, 9]
    assert len({r.request for r in requests}) == 3
    assert requests[2].metadata["of"] == requests[0].request
    assert chat(seed=-1).requests[0].params.seed == 2**63 - 1
    assert chat().requests[0].params.seed != chat().requests[0].params.seed


def test_parameters_reach_the_engine() -> None:
    (request,) = chat(
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        stop="x",
        stop_token_ids=[5],
        max_tokens=9,
        max_completion_tokens=10,
        min_tokens=2,
        ignore_eos=True,
        priority=3,
        cache_salt="s",
        logprobs=True,
        top_logprobs=2,
        logit_bias={"5": -100},
        structured_outputs={"choice": ["a", "b"]},
        chat_template_kwargs={"enable_thinking": False},
    ).requests
    params = request.params
    assert (params.top_k, params.stop, params.max_tokens, params.min_tokens) == (0, ("x",), 10, 2)
    assert (params.logprobs, params.logit_bias) == (2, {5: -100.0})
    assert params.structured is not None and params.structured.choice == ("a", "b")
    assert (request.priority, request.salt) == (-3, "s")
    assert request.template == {"enable_thinking": False}


def test_messages_in_every_form() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    (request,) = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
        ]
    ).requests
    turns = request.messages or []
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "tool"]
    assert [turn.content for turn in turns] == ["Be brief.", "ab", "", "2"]
    assert turns[2].tool_calls is not None
    assert turns[2].tool_calls[0].arguments == {"a": 1}
    assert turns[3].tool_call_id == "c1"


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "g"}}


def test_tools_are_offered_or_forced() -> None:
    assert chat(tools=[TOOL]).requests[0].tools == [TOOL]
    assert chat(tools=[TOOL], tool_choice="none").requests[0].tools is None
    free = chat(tools=[TOOL, OTHER], tool_choice="auto").requests[0]
    assert free.params.structured is None
    required = chat(tools=[TOOL, OTHER], tool_choice="required").requests[0].params.structured
    assert required.json_schema["items"]["anyOf"][1]["properties"]["name"] == {"const": "g"}
    one = chat(tools=[TOOL, OTHER], tool_choice="required", parallel_tool_calls=False)
    assert "anyOf" in one.requests[0].params.structured.json_schema
    named = chat(
        tools=[TOOL, OTHER], tool_choice={"type": "function", "function": {"name": "g"}}
    ).requests[0]
    assert named.params.structured.json_schema["properties"]["name"] == {"const": "g"}
    assert named.tools == [OTHER]
    with pytest.raises(ApiError):
        chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "h"}})


def test_only_one_form_can_be_asked_for() -> None:
    with pytest.raises(ApiError):
        chat(
            tools=[TOOL],
            tool_choice="required",
            response_format={"type": "json_object"},
        )

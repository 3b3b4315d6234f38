"""What the events of requests become: chunks, and the whole that they add up to."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from app.events.catalogue import (
    Payload,
    RequestFinished,
    RequestStarted,
    Timings,
    TokenLogprobs,
    TokensGenerated,
    Usage,
)
from app.transport.openai.chat import ChatAnswer, ChatBody
from app.transport.openai.chat import plan as chat_plan
from app.transport.openai.completions import CompletionAnswer, CompletionBody
from app.transport.openai.completions import plan as completion_plan
from app.transport.openai.errors import ApiError

HELLO = [{"role": "user", "content": "Hello"}]
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def events(*texts: str, reason: str = "stop", scored: bool = False) -> list[Payload]:
    """What happens to a request that says these texts, one token each."""
    found: list[Payload] = [
        RequestStarted(
            request="r", epoch=1, model="m", weights="w", prompt_tokens=5, cached_tokens=4
        )
    ]
    for index, text in enumerate(texts):
        scores = [TokenLogprobs(logprob=-0.5, top=[(ord("a"), -0.5), (ord("b"), float("-inf"))])]
        found.append(
            TokensGenerated(
                request="r",
                epoch=1,
                batch=index,
                index=index,
                tokens=[ord(text[0]) if text else 0],
                text=text,
                logprobs=scores if scored else [],
            )
        )
    found.append(
        RequestFinished(
            request="r",
            epoch=1,
            reason=reason,
            text="".join(texts),
            usage=Usage(prompt_tokens=5, cached_tokens=4, completion_tokens=len(texts)),
            timings=Timings(),
            batches=len(texts),
            digest="",
        )
    )
    return found


def spell(token: int) -> bytes:
    """Tokens are characters; 0 is a control token."""
    return chr(token).encode() if token else b""


def chat(*, scored: bool = False, **fields: Any) -> ChatAnswer:
    """An answer that has yet to come."""
    body = msgspec.convert({"messages": HELLO, **fields}, ChatBody)
    return ChatAnswer(
        chat_plan(body, deadline=None, origin={}),
        model="m",
        created=1,
        options=body.stream_options,
        spell=spell if scored else None,
        prompts=[[7, 8]] * body.n,
    )


def completion(*, scored: bool = False, **fields: Any) -> CompletionAnswer:
    """An answer that has yet to come."""
    body = msgspec.convert({"prompt": "Once", **fields}, CompletionBody)
    return CompletionAnswer(
        completion_plan(body, deadline=None, origin={}),
        body,
        model="m",
        created=1,
        spell=spell if scored else None,
        prompts=[[7, 8]] * body.n,
    )


def run(answer: ChatAnswer | CompletionAnswer, *each: list[Payload]) -> list[dict[str, Any]]:
    """Chunks of a stream; it must end as clients expect."""
    frames = [answer.opening()]
    for step in range(max(map(len, each))):
        frames += [answer.feed(i, run[step]) for i, run in enumerate(each) if step < len(run)]
    lines = b"".join([*frames, answer.closing()]).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_a_chat_as_a_stream() -> None:
    chunks = run(chat(stream_options={"include_usage": True}), events("Hel", "lo"))
    assert [c["object"] for c in chunks] == ["chat.completion.chunk"] * 5
    assert len({c["id"] for c in chunks}) == 1 and chunks[0]["id"].startswith("chatcmpl-")
    deltas = [c["choices"][0]["delta"] for c in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert deltas[1:] == [{"content": "Hel"}, {"content": "lo"}, {}]
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None, None, None, "stop"]
    assert [c["usage"] for c in chunks[:-1]] == [None] * 4
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 7
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}


def test_usage_only_where_it_was_asked_for() -> None:
    assert all("usage" not in c for c in run(chat(), events("a")))
    counts = run(chat(stream_options={"continuous_usage_stats": True}), events("a", "b"))
    assert [c["usage"]["completion_tokens"] for c in counts] == [0, 1, 2, 2]


def test_a_chat_as_a_whole() -> None:
    answer = chat(n=2)
    run(answer, events("Hel", "lo"), events("Bye", reason="length"))
    body = answer.body()
    assert [c["message"]["content"] for c in body["choices"]] == ["Hello", "Bye"]
    assert [c["finish_reason"] for c in body["choices"]] == ["stop", "length"]
    assert body["usage"]["prompt_tokens"] == 5  # the prompt is one
    assert body["usage"]["completion_tokens"] == 3


TOOLS = [{"type": "function", "function": {"name": "f"}}]


def test_calls_as_a_stream_and_as_a_whole() -> None:
    answer = chat(tools=TOOLS)
    chunks = run(answer, events("I look. ", *CALL, "\n", *CALL))
    calls = [c["choices"][0]["delta"].get("tool_calls") for c in chunks]
    ((first,), (second,)) = [found for found in calls if found]
    assert (first["index"], second["index"]) == (0, 1)
    assert first["id"] != second["id"] and first["id"].startswith("call_")
    assert first["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    message = answer.body()["choices"][0]["message"]
    assert message["content"] == "I look."
    assert [c["id"] for c in message["tool_calls"]] == [first["id"], second["id"]]


def test_token_ids_as_a_stream_and_as_a_whole() -> None:
    answer = chat(return_token_ids=True, n=2)
    chunks = run(answer, events("a", "", "b"), events("c"))  # one token without a text yet
    assert [c.get("prompt_token_ids") for c in chunks[:3]] == [[7, 8], [7, 8], None]
    told: list[list[int]] = [[], []]
    for choice in (c["choices"][0] for c in chunks):
        told[choice["index"]] += choice.get("token_ids", [])
    assert told == [[97, 0, 98], [99]]
    assert answer.body()["prompt_token_ids"] == [7, 8]
    assert [c["token_ids"] for c in answer.body()["choices"]] == told
    legacy = completion(return_token_ids=True, n=2)
    chunks = run(legacy, events("a", "", "b"), events("c"))
    choices = [c["choices"][0] for c in chunks]
    assert [c.get("prompt_token_ids") for c in choices[:3]] == [[7, 8], [7, 8], None]
    assert [c["token_ids"] for c in choices if c["index"] == 0 and "token_ids" in c] == [
        *([97], [0], [98])
    ]
    for index, choice in enumerate(legacy.body()["choices"]):
        assert (choice["prompt_token_ids"], choice["token_ids"]) == ([7, 8], told[index])
    for plain in (chat(), completion()):
        assert "token_ids" not in json.dumps(run(plain, events("a"))) + json.dumps(plain.body())


def test_an_answer_that_only_calls_has_no_content() -> None:
    answer = chat(tools=TOOLS, tool_choice="required")
    run(answer, events('[{"name": "f", "arguments": {}}]'))
    message = answer.body()["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"]["arguments"] == "{}"


def test_only_one_call_where_they_may_not_be_parallel() -> None:
    answer = chat(tools=TOOLS, parallel_tool_calls=False)
    run(answer, events(CALL, CALL))
    assert len(answer.body()["choices"][0]["message"]["tool_calls"]) == 1


def test_logprobs_of_a_chat() -> None:
    answer = chat(scored=True, logprobs=True, top_logprobs=2)
    chunks = run(answer, events("a", "b", "", scored=True))
    whole = answer.body()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in whole] == ["a", "b"]  # a control token has none
    assert whole[0]["bytes"] == [97] and whole[0]["logprob"] == -0.5
    assert [t["logprob"] for t in whole[0]["top_logprobs"]] == [-0.5, -9999.0]
    streamed = [c["choices"][0]["logprobs"] for c in chunks]
    assert [entry for found in streamed if found for entry in found["content"]] == whole


def test_no_score_is_lost_while_text_is_held_back() -> None:
    answer = chat(scored=True, logprobs=True, tools=TOOLS)
    chunks = run(answer, events(*CALL, scored=True))
    streamed = [c["choices"][0]["logprobs"] for c in chunks]
    assert len([e for found in streamed if found for e in found["content"]]) == len(CALL)


def test_a_completion_as_a_stream_and_as_a_whole() -> None:
    answer = completion(echo=True, stream_options={"include_usage": True})
    chunks = run(answer, events(" upon", " a"))
    texts = [c["choices"][0]["text"] for c in chunks[:-1]]
    assert texts == ["Once", " upon", " a", ""]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    body = answer.body()
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "Once upon a"


def test_several_prompts_count_each() -> None:
    answer = completion(prompt=["a", "b"], n=2)
    run(answer, *[events("x")] * 4)
    usage = answer.body()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (10, 4)


def test_logprobs_of_a_completion() -> None:
    answer = completion(scored=True, logprobs=2)
    run(answer, events("a", "b", scored=True))
    lists = answer.body()["choices"][0]["logprobs"]
    assert lists["tokens"] == ["a", "b"]
    assert lists["text_offset"] == [0, 1]
    assert lists["token_logprobs"] == [-0.5, -0.5]
    assert lists["top_logprobs"][0] == {"a": -0.5, "b": -9999.0}


def test_an_error_in_mid_stream() -> None:
    frame = chat().broken(ApiError(503, "gone", code="shutting_down"))
    error = json.loads(frame.removeprefix(b"data: "))["error"]
    assert error == {
        "message": "gone",
        "type": "server_error",
        "param": None,
        "code": "shutting_down",
    }

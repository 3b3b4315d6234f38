"""Real clients against a real server with the real model."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pydantic
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.support.beside import python_with
from tests.support.server import ROOT, Server, running

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

MODEL = "smollm2-135m-instruct"
PARIS: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests here."""
    database = tmp_path_factory.mktemp("api") / "log.db"
    with running(database, env={"EVERLOG_ENGINE__DTYPE": "float32"}) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    """OpenAI's own client."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def everlog(server: Server, *words: str) -> str:
    """What a command prints about the server's log."""
    command = [sys.executable, "-m", "app", *words, "--database", f"sqlite:///{server.database}"]
    env = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return done.stdout


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list()
    assert model.id == MODEL
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-5")
    assert missing.value.code == "model_not_found"


def test_chat(client: OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=PARIS, temperature=0, max_tokens=20)
    (choice,) = done.choices
    assert "Paris" in (choice.message.content or "")
    assert choice.finish_reason == "stop"
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_chat_as_a_stream(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=PARIS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "Paris" in text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 1


def test_stop_and_length(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL, messages=PARIS, temperature=0, stop=[" Paris"], max_completion_tokens=20
    )
    assert done.choices[0].message.content == "The capital of France is"
    done = client.chat.completions.create(
        model=MODEL, messages=PARIS, temperature=0, max_completion_tokens=2
    )
    assert done.choices[0].finish_reason == "length"


def test_completions(client: OpenAI, server: Server) -> None:
    done = client.completions.create(model=MODEL, prompt="1, 2, 3,", temperature=0, max_tokens=3)
    ids = httpx2.post(f"{server.url}/tokenize", json={"prompt": "1, 2, 3,"}).json()["tokens"]
    same = client.completions.create(model=MODEL, prompt=ids, temperature=0, max_tokens=3)
    assert done.choices[0].text == same.choices[0].text
    stream = client.completions.create(
        model=MODEL, prompt="1, 2, 3,", temperature=0, max_tokens=3, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == done.choices[0].text


def test_tokens_and_back(server: Server) -> None:
    asked = {"messages": PARIS, "return_token_strs": True}
    found = httpx2.post(f"{server.url}/tokenize", json=asked).json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == 8192
    back = httpx2.post(f"{server.url}/detokenize", json={"tokens": found["tokens"]}).json()
    assert back["prompt"] == "".join(found["token_strs"])
    assert "<|im_start|>user\nWhat is the capital of France?<|im_end|>" in back["prompt"]


def test_a_tool_that_must_be_called(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "How is the weather in Paris?"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
        max_tokens=60,
    )
    (choice,) = done.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function" and call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "user", "content": "How is the weather in Paris?"},
            choice.message.to_dict(),  # type: ignore[list-item]
            {"role": "tool", "tool_call_id": call.id, "content": "It is sunny, 25 degrees."},
        ],
        tools=[WEATHER],
        tool_choice="none",
        temperature=0,
        max_tokens=20,
    )
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls


def test_a_tool_that_must_be_called_as_a_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": "How is the weather in Paris?"}],
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=60,
    ) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert call.function.name == "get_weather"


class Capital(pydantic.BaseModel):
    """What the model is to fill in."""

    country: str = pydantic.Field(max_length=12)
    sure: bool


def test_a_form_that_is_parsed(client: OpenAI) -> None:
    done = client.chat.completions.parse(
        model=MODEL, messages=PARIS, response_format=Capital, temperature=0, max_tokens=60
    )
    assert isinstance(done.choices[0].message.parsed, Capital)


def test_choices_that_are_given(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL,
        messages=PARIS,
        max_tokens=10,
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}, "top_k": 5, "min_p": 0.1},
    )
    assert done.choices[0].message.content in ("yes", "no")


def test_logprobs(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL, messages=PARIS, temperature=0, logprobs=True, top_logprobs=2, max_tokens=20
    )
    (choice,) = done.choices
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    assert "".join(entry.token for entry in entries) == choice.message.content
    for entry in entries:
        assert entry.logprob <= 0
        assert [top.token for top in entry.top_logprobs][:1] == [entry.token]  # greedy
        assert len(entry.top_logprobs) == 2
    legacy = client.completions.create(
        model=MODEL, prompt="1, 2, 3,", temperature=0, max_tokens=3, logprobs=1
    ).choices[0]
    assert legacy.logprobs is not None
    assert "".join(legacy.logprobs.tokens or []) == legacy.text


def test_logprobs_of_the_prompt(client: OpenAI) -> None:
    extra = {"prompt_logprobs": 1}
    done = client.completions.create(
        model=MODEL, prompt="1, 2, 3,", temperature=0, max_tokens=1, extra_body=extra
    )
    first, *rest = done.choices[0].to_dict()["prompt_logprobs"]  # type: ignore[misc,has-type]
    assert first is None
    assert all(1 <= len(place) <= 2 for place in rest)
    chat = client.chat.completions.create(
        model=MODEL, messages=PARIS, max_tokens=1, extra_body=extra
    )
    places: Any = chat.to_dict()["prompt_logprobs"]
    assert chat.usage is not None and len(places) == chat.usage.prompt_tokens
    assert chat.choices[0].logprobs is None
    texts = [entry["decoded_token"] for place in places[1:] for entry in place.values()]
    assert " capital" in texts
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=MODEL, prompt="1", stream=True, extra_body=extra)


def test_token_ids(client: OpenAI, server: Server) -> None:
    extra = {"return_token_ids": True}
    asked: Any = {"model": MODEL, "messages": PARIS, "temperature": 0, "max_tokens": 4}
    whole = client.chat.completions.create(**asked, extra_body=extra).to_dict()
    choice: Any = whole["choices"][0]  # type: ignore[index]
    prompt = httpx2.post(f"{server.url}/tokenize", json={"messages": PARIS}).json()["tokens"]
    assert whole["prompt_token_ids"] == prompt
    said = httpx2.post(f"{server.url}/detokenize", json={"tokens": choice["token_ids"]}).json()
    assert said["prompt"] == choice["message"]["content"]
    told: list[int] = []
    with client.chat.completions.create(**asked, stream=True, extra_body=extra) as stream:
        chunks: list[Any] = [chunk.to_dict() for chunk in stream]
    for chunk in chunks:
        told += chunk["choices"][0].get("token_ids", [])
    assert (chunks[0]["prompt_token_ids"], told) == (prompt, choice["token_ids"])
    again: Any = client.completions.create(
        model=MODEL, prompt=prompt, temperature=0, max_tokens=4, extra_body=extra
    ).to_dict()
    assert again["choices"][0]["prompt_token_ids"] == prompt
    assert again["choices"][0]["token_ids"] == told


def test_errors_are_those_of_the_client(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=PARIS, temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt=[1] * 9000)
    assert refused.value.code == "context_length_exceeded"
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model=MODEL,
            messages=PARIS,
            response_format=schema,  # type: ignore[arg-type]
        )


def test_the_timeline_of_a_request(client: OpenAI, server: Server) -> None:
    done = client.chat.completions.create(model=MODEL, messages=PARIS, max_tokens=2)
    shown = everlog(server, "timeline", done.id)
    for part in ("request", "queue", "prefill", "decode"):
        assert part in shown


def test_langchain(server: Server) -> None:
    from langchain_openai import ChatOpenAI  # takes a second to import

    model = ChatOpenAI(
        model=MODEL, base_url=f"{server.url}/v1", api_key="none", temperature=0, max_tokens=20
    )
    assert "Paris" in model.invoke("What is the capital of France?").content
    pieces = [chunk.content for chunk in model.stream("What is the capital of France?")]
    assert len(pieces) > 2 and "Paris" in "".join(pieces)
    bound = model.bind_tools([WEATHER], tool_choice="get_weather")
    (call,) = bound.invoke("How is the weather in Paris?").tool_calls
    assert call["name"] == "get_weather"


def test_llamaindex(server: Server) -> None:
    here = Path(__file__).parent
    python = python_with(here / "llamaindex.txt")
    command = [str(python), str(here / "llamaindex.py"), f"{server.url}/v1", MODEL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "Paris" in found["complete"] and "Paris" in found["chat"]
    assert "".join(found["stream_complete"]).startswith(" 4")
    assert len(found["stream_chat"]) > 2 and "".join(found["stream_chat"]) == found["chat"]
    ((name, arguments),) = found["calls"]
    assert name == "get_weather" and set(arguments) == {"city"}


def test_several_answers(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": PARIS, "max_tokens": 12, "seed": 3}
    done = client.chat.completions.create(**ask, n=3)
    one = client.chat.completions.create(**ask)
    texts = [choice.message.content for choice in done.choices]
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert len(set(texts)) > 1 and texts[0] == one.choices[0].message.content
    third = client.chat.completions.create(**(ask | {"seed": 5}))
    assert third.choices[0].message.content == texts[2]  # each has the seed after the last one's
    assert done.usage is not None and one.usage is not None
    assert done.usage.prompt_tokens == one.usage.prompt_tokens  # counted once
    assert one.usage.completion_tokens < done.usage.completion_tokens <= 36


def test_events_of_streams(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=PARIS, response_format=Capital, temperature=0, max_tokens=60
    ) as stream:
        seen = [event.type for event in stream]
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(parsed, Capital) and {"content.delta", "content.done"} <= set(seen)
    with client.responses.stream(
        model=MODEL,
        input="What is the capital of France?",
        temperature=0,
        max_output_tokens=20,
    ) as events:
        kinds = [event.type for event in events]
        final = events.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert "response.output_text.delta" in kinds and "Paris" in final.output_text


async def test_the_async_client(server: Server) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        ask: dict[str, Any] = {"model": MODEL, "temperature": 0}
        stream, parsed, made, page = await asyncio.gather(
            client.chat.completions.create(**ask, messages=PARIS, max_tokens=12, stream=True),
            client.chat.completions.parse(
                **ask, messages=PARIS, response_format=Capital, max_tokens=60
            ),
            client.responses.parse(
                **ask, input="Paris?", text_format=Capital, max_output_tokens=60
            ),
            client.models.list(),
        )
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "Paris" in "".join(pieces)
    assert isinstance(parsed.choices[0].message.parsed, Capital)
    assert isinstance(made.output_parsed, Capital)
    assert [model.id for model in page.data] == [MODEL]


def test_what_open_webui_does(server: Server) -> None:
    headers = {
        "Authorization": "Bearer sk-anything",
        "X-OpenWebUI-User-Id": "42",
        "X-OpenWebUI-Chat-Id": "abc",
    }
    with httpx2.Client(base_url=f"{server.url}/v1", headers=headers, timeout=30) as client:
        (model,) = client.get("/models").json()["data"]
        body = {
            "model": model["id"],
            "messages": PARIS,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 8,
            "temperature": 0,
            "files": [],
            "params": {},
        }
        with client.stream("POST", "/chat/completions", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert answer.headers["x-everlog-ignored"] == "files, params"
        request = answer.headers["x-request-id"]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 0
    shown = everlog(server, "events", "--json", "--type", "request.queued").splitlines()
    (queued,) = [line for line in shown if request in line]
    assert "x-openwebui-user-id" in queued and "x-openwebui-chat-id" in queued


def test_frames_as_curl_sees_them(server: Server, tmp_path: Path) -> None:
    body = {"messages": PARIS, "temperature": 0, "stream": True, "max_tokens": 3}
    answer = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)
    frames = answer.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    assert all(frame.startswith("data: {") and "\n" not in frame for frame in frames[:-2])


def test_responses(client: OpenAI) -> None:
    made = client.responses.create(
        model=MODEL, input="What is the capital of France?", temperature=0, max_output_tokens=20
    )
    assert made.status == "completed"
    assert "Paris" in made.output_text
    assert client.responses.retrieve(made.id).output_text == made.output_text
    more = client.responses.create(
        model=MODEL,
        input="And of Spain?",
        previous_response_id=made.id,
        temperature=0,
        max_output_tokens=8,
    )
    assert more.usage is not None and made.usage is not None
    assert more.usage.input_tokens > made.usage.total_tokens
    items = client.responses.input_items.list(more.id).data
    assert [item.content[0].text for item in items] == ["And of Spain?"]  # type: ignore[union-attr]


def test_conversations(client: OpenAI, server: Server) -> None:
    talk = client.conversations.create(
        items=[{"role": "user", "content": "What is the capital of France?"}],
        metadata={"topic": "capitals"},
    )
    assert client.conversations.retrieve(talk.id) == talk
    assert client.conversations.update(talk.id, metadata={"topic": "x"}).metadata == {"topic": "x"}
    made = client.responses.create(
        model=MODEL,
        conversation=talk.id,
        input="Tell me.",
        temperature=0,
        max_output_tokens=20,
        top_logprobs=1,
    )
    assert made.conversation is not None and made.conversation.id == talk.id
    items: list[Any] = list(
        client.conversations.items.list(
            talk.id, order="asc", limit=1, include=["message.output_text.logprobs"]
        )
    )
    assert [item.role for item in items] == ["user", "user", "assistant"]
    assert items[2].content[0].text == made.output_text
    assert items[2].content[0].logprobs
    one: Any = client.conversations.items.retrieve(items[0].id, conversation_id=talk.id)
    assert one.content[0].text == "What is the capital of France?"
    client.conversations.items.delete(items[0].id, conversation_id=talk.id)
    (added,) = client.conversations.items.create(
        talk.id, items=[{"role": "user", "content": "And of Spain?"}]
    ).data
    assert added.type == "message"
    assert client.responses.input_items.list(made.id).data[0].type == "message"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    shown = everlog(server, "show", talk.id)
    assert "Tell me." in shown and made.output_text[:8] in shown
    assert "decode" in everlog(server, "timeline", talk.id)
    assert client.conversations.delete(talk.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(talk.id)


def test_a_response_as_a_stream_that_breaks_off(client: OpenAI) -> None:
    stream = client.responses.create(
        model=MODEL,
        input="Count to ten.",
        background=True,
        stream=True,
        temperature=0,
        max_output_tokens=24,
    )
    seen = []
    for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta":
            break
    stream.close()
    first: Any = seen[0]
    rest = client.responses.retrieve(
        first.response.id, stream=True, starting_after=seen[-1].sequence_number
    )
    seen += rest
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    text = "".join(e.delta for e in seen if e.type == "response.output_text.delta")
    last: Any = seen[-1]
    assert last.response.output_text == text != ""


def test_a_response_that_calls_and_parses(client: OpenAI) -> None:
    tool: Any = {"type": "function", "strict": True, **WEATHER["function"]}
    made = client.responses.create(
        model=MODEL,
        input="How is the weather in Paris?",
        tools=[tool],
        tool_choice={"type": "function", "name": "get_weather"},
        temperature=0,
        max_output_tokens=60,
    )
    (call,) = made.output
    assert call.type == "function_call" and call.name == "get_weather"
    parsed = client.responses.parse(
        model=MODEL, input="Paris?", text_format=Capital, temperature=0, max_output_tokens=60
    )
    assert isinstance(parsed.output_parsed, Capital)

"""What nobody sends by mistake: it is refused by name, and holds neither memory nor a batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from app.events.catalogue import RequestQueued
from app.events.objects import CHUNK, DirectoryObjects
from app.transport.openai import batchkeeper, calls, chat, files
from app.transport.openai.api import Api, Scoring
from app.transport.openai.chat import ChatBody
from app.transport.openai.errors import ApiError
from app.transport.openai.fields import parse
from app.transport.openai.library import File
from app.transport.openai.multipart import Begin, Form
from app.transport.openai.paging import page
from app.transport.openai.prompts import arguments, message
from app.transport.openai.results import texts
from app.transport.server import Service
from tests.transport.openai.test_batches import (
    api,
    create,
    ended,
    engine,
    jsonl,
    line,
    results,
    upload,
)
from tests.transport.openai.test_edge import client

__all__ = ["client"]

HUGE = 2**70
DEEP = "[" * 100_000


def refused(**body: Any) -> str | None:
    """The field that is to blame for a chat request."""
    given = {"messages": [{"role": "user", "content": "Hello"}], **body}
    with pytest.raises(ApiError) as error:
        chat.plan(parse(msgspec.json.encode(given), ChatBody)[0], deadline=None, origin={})
    assert error.value.status == 400
    return error.value.param


def test_a_part_of_a_message_has_a_type() -> None:
    with pytest.raises(ApiError) as error:
        message({"role": "user", "content": [{"type": []}]}, "messages[0]")
    assert error.value.param == "messages[0].content[0].type"


@pytest.mark.parametrize("text", [5, DEEP, '{"a": "\\ud800"}', '{"a": NaN}', f'{{"a": {HUGE}}}'])
def test_arguments_are_json_that_can_be_kept(text: Any) -> None:
    with pytest.raises(ApiError) as error:
        arguments(text, "arguments")
    assert error.value.param == "arguments"


def test_numbers_fit_into_what_the_engine_reads() -> None:
    call = {"function": {"name": "f", "arguments": {"a": HUGE}}}
    assert refused(chat_template_kwargs={"a": HUGE}) == "chat_template_kwargs"
    assert refused(tools=[{"function": {"name": "f", "parameters": {"a": HUGE}}}]) == "tools"
    assert refused(messages=[{"role": "assistant", "tool_calls": [call]}]) == "messages"
    assert refused(stop_token_ids=[HUGE]) == "stop_token_ids"
    assert refused(priority=2**63) == refused(priority=-(2**31)) == "priority"


def test_a_limit_of_very_many_digits_is_no_limit() -> None:
    for digits in ("000000001" + "9" * 5000, "0000000019"):
        with pytest.raises(ApiError, match="limit must be"):
            page([], {"limit": digits})


@pytest.mark.parametrize(
    "said",
    [
        '{"name": [], "arguments": {}}',
        json.dumps({"name": "f", "arguments": DEEP}),
        '{"name": "f", "arguments": {"a": "\\ud83d"}}',
    ],
)
def test_whatever_a_model_writes_can_be_sent(said: str) -> None:
    parser = calls.parser(frozenset({"f"}), forced=True, model=None)
    found = [*parser.push(said), *parser.finish()]
    msgspec.json.encode([each if isinstance(each, str) else each.arguments for each in found])


async def test_lists_of_files_refuse_it_too(client: httpx2.AsyncClient) -> None:
    for path in ("/v1/files", "/v1/batches"):
        answer = await client.get(path, params={"limit": "000000001" + "9" * 5000})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


# ----------------------------------------------------------------------------------- forms

FORM = {"content-type": "multipart/form-data; boundary=X"}


def part(name: str, more: str = "") -> bytes:
    """Begin of a part."""
    return f'--X\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()


@pytest.mark.parametrize("charset", ["utf-7", "raw_unicode_escape", "punycode", "undefined", "\0"])
def test_names_in_odd_charsets_can_be_kept_or_are_refused(charset: str) -> None:
    try:
        found = list(Form(FORM["content-type"]).feed(part("f", f"; filename*={charset}''%5Cud8")))
        found += Form(FORM["content-type"]).feed(part("f", f"; filename*={charset}''a%2B2AA-"))
    except ApiError as error:
        assert error.status == 400
        return
    for each in found:
        assert isinstance(each, Begin)
        msgspec.json.encode(each)


def test_what_comes_behind_a_form_is_not_kept() -> None:
    form = Form(FORM["content-type"])
    assert not [*form.feed(b"--X--"), *form.feed(b"a" * 1000)]
    assert not form._buffer


async def sent(
    client: httpx2.AsyncClient, pieces: list[bytes], pause: float = 0.0
) -> tuple[int, Any]:
    """The answer to a form that comes in pieces."""

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
        await asyncio.sleep(pause)

    answer = await client.post("/v1/files", headers=FORM, content=body())
    return answer.status_code, answer.json()["error"]


async def test_a_form_has_not_endless_fields(client: httpx2.AsyncClient) -> None:
    pieces = [part(f"f{number}") + b"\r\n" for number in range(1000)]
    status, error = await sent(client, [*pieces, b"--X--"])
    assert (status, error["code"]) == (400, "invalid_form")
    assert "fields" in error["message"]


async def test_an_upload_that_stands_still_ends(
    client: httpx2.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PIECE_SECONDS", 0.2)
    begun = [part("purpose") + b"batch\r\n", part("file", '; filename="a"') + b"{}\n"]
    status, error = await sent(client, begun, pause=3)
    assert (status, error["code"]) == (408, "timeout")
    assert not [each async for each in service.objects.list("files/")]


# --------------------------------------------------------------------------------- batches


async def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    objects = DirectoryObjects(tmp_path)
    content = b"a" * (5 * CHUNK) + b"\n\n" + b"b" * CHUNK + b"c\nd"
    stored = await objects.put("files/a", content)
    file = File(
        id="a",
        name="a",
        purpose="batch",
        bytes=stored.size,
        sha256=stored.sha256 or "",
        object="files/a",
        owner="user:local",
        created=0,
    )
    found = [each async for each in texts(objects, file, most=2 * CHUNK)]
    (first, long), *rest = found
    assert (first, rest) == (1, [(3, b"b" * CHUNK + b"c"), (4, b"d")])
    assert 2 * CHUNK < len(long) <= 3 * CHUNK


async def test_a_line_that_the_server_fails_on_fails_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = Api.scoring

    async def failing(self: Api, requests: list[RequestQueued], *, ids: bool) -> Scoring:
        if requests[0].metadata["custom_id"] == "bad":
            raise ValueError("a bug")
        return await scoring(self, requests, ids=ids)

    monkeypatch.setattr(Api, "scoring", failing)
    async with api(service) as client, engine(service):
        file = await upload(client, line("a"), line("bad"), line("b"))
        batch = await ended(client, await create(client, file), seconds=4)
        assert [each["custom_id"] for each in await results(client, batch.output_file_id)] == [
            "a",
            "b",
        ]
        (bad,) = await results(client, batch.error_file_id)
        assert (bad["custom_id"], bad["response"]["status_code"]) == ("bad", 500)


async def test_a_batch_whose_file_is_damaged_can_be_cancelled(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batchkeeper, "AGAIN_SECONDS", 0.1)
    async with api(service) as client, engine(service):
        id = await upload(client, line("a"))
        file = (await service.shelf.look()).file(id)
        assert file is not None
        await service.objects.put(file.object, jsonl(line("b")))  # behind our back
        batch = await create(client, id)
        await asyncio.sleep(0.3)  # it is tried again: the place of the objects might come back
        assert (await client.batches.retrieve(batch)).status in ("validating", "in_progress")
        await client.batches.cancel(batch)
        found = await ended(client, batch, seconds=8)
        assert [each.code for each in found.errors.data] == ["file_unreadable"]


# --------------------------------------------------------------------------- conversations


async def test_items_that_are_not_kept_are_added_as_nothing(client: httpx2.AsyncClient) -> None:
    path = f"/v1/conversations/{(await client.post('/v1/conversations', json={})).json()['id']}"
    body = {"items": [{"type": "reasoning", "summary": []}]}
    answer = await client.post(f"{path}/items", json=body)
    assert (answer.status_code, answer.json()["data"]) == (200, [])


async def test_items_come_in_thousands_at_most(client: httpx2.AsyncClient) -> None:
    body = {"items": [{"role": "user", "content": "x"}] * 1001}
    answer = await client.post("/v1/conversations", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "items")


async def test_whose_conversation_is_not_there_is_told_which_field_says_so(
    client: httpx2.AsyncClient,
) -> None:
    answer = await client.post("/v1/responses", json={"input": "x", "conversation": "conv_1"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "conversation")


async def test_no_model_is_called_what_no_table_can_hold(client: httpx2.AsyncClient) -> None:
    body = {"model": "a\0", "messages": [{"role": "user", "content": "x"}]}
    answer = await client.post("/v1/chat/completions", json=body, timeout=2)
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")

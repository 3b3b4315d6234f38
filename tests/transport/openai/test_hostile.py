"""What nobody sends by mistake: it is refused by name, and holds neither memory nor a batch."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import msgspec
import pytest

from app.transport.openai import calls, chat
from app.transport.openai.chat import ChatBody
from app.transport.openai.errors import ApiError
from app.transport.openai.fields import parse
from app.transport.openai.paging import page
from app.transport.openai.prompts import arguments, message
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


@pytest.mark.parametrize("text", [DEEP, '{"a": "\\ud800"}', '{"a": NaN}', f'{{"a": {HUGE}}}'])
def test_arguments_are_json_that_can_be_kept(text: str) -> None:
    with pytest.raises(ApiError) as error:
        arguments(text, "arguments")
    assert error.value.param == "arguments"


def test_numbers_fit_into_what_the_engine_reads() -> None:
    call = {"function": {"name": "f", "arguments": {"a": HUGE}}}
    assert refused(chat_template_kwargs={"a": HUGE}) == "chat_template_kwargs"
    assert refused(tools=[{"function": {"name": "f", "parameters": {"a": HUGE}}}]) == "tools"
    assert refused(messages=[{"role": "assistant", "tool_calls": [call]}]) == "messages"
    assert refused(stop_token_ids=[HUGE]) == "stop_token_ids"
    assert refused(priority=2**63) == "priority"


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

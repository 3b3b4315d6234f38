"""What authors test their files with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import app as el
from app.errors import EverlogError
from app.testing import Talk, chat
from tests.chat.conftest import app_of

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


async def test_the_model_says_what_the_test_wants() -> None:
    async with chat(EXAMPLES / "chat.py", answers=["Hello  there.", "Fine."]) as talk:
        first = await talk.send("Hi!")
        second = await talk.send("How are you?")
        third = await talk.send("And now?")
    assert (first.text, first.status, second.text) == ("Hello  there.", "completed", "Fine.")
    assert [turn["content"] for turn in talk.prompts[1]][1:] == [  # type: ignore[index]
        "Hi!",
        "Hello  there.",
        "How are you?",
    ]
    assert third.status == "failed" and third.error is not None
    assert "the test has no answer left for: And now?" in third.error.message
    with pytest.raises(EverlogError, match="is over"):
        await talk.send("Still there?")


async def test_answers_may_be_a_function() -> None:
    async def on_message(message: el.Message) -> None:
        text = await el.llm.complete(message.content)
        await el.Message(text).send()
        await (await el.Message("removed").send()).remove()

    async with chat(app_of(on_message=on_message), answers=str.upper) as talk:
        assert (await talk.send("hi")).text == "HI"
    assert talk.prompts == ["hi"]


async def test_the_documents_example_finds_the_right_text(tmp_path: Path) -> None:
    (tmp_path / "cats.md").write_text("Cats sleep for sixteen hours.")
    (tmp_path / "shares.txt").write_text("Shares fell on Monday.")
    async with chat(EXAMPLES / "documents.py", answers=["Sixteen."]) as talk:
        talk.app.hooks["on_message"].__globals__.update(FOLDER=tmp_path, BEST=1)
        reply = await talk.send("How long do cats sleep?")
    assert reply.text == "Sixteen.\n\nSources: `cats.md`"
    assert [(s.name, s.kind) for s in reply.steps] == [
        ("read_documents", "embedding"),
        ("find", "retrieval"),
    ]


async def test_a_restart_in_the_middle_of_a_job() -> None:
    async with chat(EXAMPLES / "job.py") as talk:
        asked = await talk.post("2")
        await talk.until(lambda state: "1 of 2" in state.messages[-1].content)
        await talk.restart()
        reply = await talk.reply(asked)
    assert [m.content.partition(":")[0] for m in reply.messages] == [
        "1 of 2",
        "The server was away; going on.",
        "2 of 2",
        "Done.",
    ]


async def test_greetings_and_stops() -> None:
    async def on_chat_start() -> None:
        el.user_session.set("greeted", True)
        await el.Message("Welcome.").send()

    async def on_message() -> None:
        await el.Message("begun").send()
        await asyncio.sleep(30)

    hooks = app_of(on_chat_start=on_chat_start, on_message=on_message)
    async with chat(hooks) as talk:
        greeted = await talk.state()
        assert [m.content for m in greeted.messages] == ["Welcome."]
        assert greeted.session == {"greeted": True}
        asked = await talk.post("go")
        await talk.until(lambda state: state.messages[-1].content == "begun")
        await talk.stop()
        reply = await talk.reply(asked)
        assert (reply.status, reply.text) == ("stopped", "begun")
        with pytest.raises(TimeoutError):
            await talk.send("again", timeout=0.1)


async def test_a_failing_handler_says_where() -> None:
    async def on_message() -> None:
        raise ValueError("no such city")

    async with chat(app_of(on_message=on_message)) as talk:
        reply = await talk.send("Atlantis")
    assert reply.status == "failed" and reply.error is not None
    assert (reply.error.kind, reply.text) == ("ValueError", "ValueError: no such city")
    assert "in on_message" in (reply.error.traceback or "")
    assert isinstance(talk, Talk) and repr(reply).startswith("Reply(failed")


async def test_the_agent_example_asks_before_it_deletes() -> None:
    answers = [
        '{"tool": "read_file", "name": "notes.txt"}',
        '{"tool": "answer", "text": "Buy milk."}',
        '{"tool": "read_file", "name": "nothing.txt"}',
        '{"tool": "delete_file", "name": "notes.txt"}',
        '{"tool": "delete_file", "name": "plan.txt"}',
    ]
    async with chat(EXAMPLES / "agent.py", answers=answers) as talk:
        files = talk.app.hooks["on_message"].__globals__["FILES"]
        read = await talk.send("What is in notes.txt?")
        asked = await talk.send("Delete it.")
        assert files.keys() == {"notes.txt", "plan.txt"}
        await talk.restart()
        deleted = await talk.send("Yes")
        assert files.keys() == {"plan.txt"}
        await talk.send("Delete plan.txt")
        left = await talk.send("no")
        assert files.keys() == {"plan.txt"}
    assert (read.text, [s.name for s in read.steps]) == ("Buy milk.", ["read_file"])
    assert talk.prompts[1][-1] == {"role": "user", "content": "It says: Buy milk. Now answer."}
    assert asked.text == "May I call `delete_file` with `notes.txt`? (yes or no)"
    assert [(s.name, s.status) for s in asked.steps] == [("read_file", "failed")]
    assert (deleted.text, left.text) == ("notes.txt was deleted.", "Then I leave it.")

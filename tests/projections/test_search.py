"""The list of conversations: paging, owners, and search."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from app.events import catalogue as c
from app.events.memory import MemoryStore
from app.projections.database import Where
from app.projections.sqlite import match
from app.projections.views import Views
from tests.projections.histories import History, write


@pytest.fixture
async def views(where: Where) -> AsyncIterator[Views]:
    log = History()
    texts = {
        "france": "What is the capital of France?",
        "cafe": "Où est le café, s'il vous plaît?",
        "code": 'print("hello") -- a comment AND more',
        "japan": "日本 の 首都",
    }
    for thread, text in texts.items():
        log.add(c.ThreadCreated(owner="ann"), thread=thread)
        message = c.MessagePosted(message="m1", role="user", content=text)
        log.add(message, thread=thread)
    log.add(c.ThreadCreated(owner="bob"), thread="bobs")
    log.add(c.MessagePosted(message="m1", role="user", content="capital letters"), thread="bobs")
    answer = c.MessagePosted(message="m2", role="assistant", content="It is\n  Paris.")
    log.add(answer, thread="france")
    log.add(c.ThreadRenamed(title="A question of geography"), thread="france")
    log.add(c.ThreadCreated(owner="ann", title="Gone"), thread="gone")
    log.add(c.ThreadDeleted(), thread="gone")
    async with MemoryStore() as store, Views.open(store, where) as opened:
        await write(store, log.events)
        await opened.reached(len(log.events))
        yield opened


async def test_rows(views: Views) -> None:
    rows = await views.threads(owner="ann")
    assert [row.id for row in rows] == ["france", "japan", "code", "cafe"]
    row = rows[0]
    assert (row.title, row.preview, row.messages) == ("A question of geography", "It is Paris.", 2)
    assert row.seq == 11 and row.version == 4 and row.updated > row.created
    assert await views.thread("france") == row
    assert await views.thread("gone") is None and await views.thread("never") is None
    assert [row.id for row in await views.threads(owner="bob")] == ["bobs"]
    assert len(await views.threads(owner=None)) == 5


async def test_paging(views: Views) -> None:
    found, before = [], None
    while page := await views.threads(owner="ann", limit=2, before=before):
        found += [row.id for row in page]
        before = page[-1].seq
    assert found == ["france", "japan", "code", "cafe"]


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("capital", ["france"]),
        ("CAPITAL fran", ["france"]),
        ("paris", ["france"]),
        ("geography", ["france"]),
        ("capital paris", []),  # not in one message
        ("cafe", ["cafe"]),
        ("plait", ["cafe"]),
        ("日本", ["japan"]),
        ("print(", ["code"]),
        ('"hello"', ["code"]),
        ("and", ["code"]),
        ("gone", []),
        ("zebra", []),
        ("   ", ["france", "japan", "code", "cafe"]),
        ("?!", []),
        ('"', []),
        ("* OR * NEAR(", []),
        ("title: france", []),
        ("fr\0ance", []),
        ("a" * 10_000, []),
        (" ".join(["capital"] * 5000), ["france"]),
    ],
)
async def test_search(views: Views, search: str, expected: list[str]) -> None:
    assert [row.id for row in await views.threads(owner="ann", search=search)] == expected


def test_words_have_no_meaning_in_the_query_language() -> None:
    assert match('say "no" OR -x col:y ^z') == '"say"* """no"""* "OR"* "-x"* "col:y"* "^z"*'
    assert match("-- * ( \0") is None


async def test_search_follows_edits_and_removals(where: Where) -> None:
    log = History()
    log.ask()
    log.generate("q1", "purple elephants")
    async with MemoryStore() as store, Views.open(store, where) as views:

        async def finds(word: str) -> bool:
            await write(store, log.events[await store.head() :])
            await views.reached(await store.head())
            return bool(await views.threads(owner="local", search=word))

        assert not await finds("elephants"), "a text is found once it is whole"
        log.move("q1", "request.finished", text="purple elephants")
        assert await finds("elephants")
        log.add(c.MessageEdited(message="a1", content="green hippos"))
        assert not await finds("elephants") and await finds("hippos")
        log.add(c.ThreadRenamed(title="Animals"))
        assert await finds("animals")
        log.add(c.MessageRemoved(message="a1"))
        assert not await finds("hippos")
        row = await views.thread("t")
        assert row is not None and (row.messages, row.preview) == (1, "question 1")

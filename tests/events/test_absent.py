"""What is remembered as absent is absent, however questions, answers and commits interleave."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from app.events.absent import Absent
from app.events.envelope import NewEvent
from app.events.open import open_store
from app.events.store import Append

NAMES = ("a", "b")
STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "answer", "store", "publish"]), st.sampled_from(NAMES)),
    max_size=40,
)


@given(STEPS)
def test_never_absent_once_published(steps: list[tuple[str, str]]) -> None:
    absent = Absent(limit=3)
    stored: set[str] = set()
    published: set[str] = set()
    asked: list[tuple[str, object, bool]] = []  # with what the database saw
    for step, name in steps:
        if step == "ask":
            asked.append((name, absent.asking(name), name in stored))
        elif step == "answer" and asked:
            of, mark, exists = asked.pop()
            absent.answered(of, mark, exists=exists)
        elif step == "store":
            stored.add(name)
        elif step == "publish" and name in stored and name not in published:
            published.add(name)
            absent.began(name)
        assert not any(name in absent for name in published)


def test_remembers_and_forgets() -> None:
    absent = Absent()
    absent.answered("a", absent.asking("a"), exists=False)
    absent.answered("b", absent.asking("b"), exists=True)
    assert ("a" in absent, "b" in absent) == (True, False)
    absent.began("a")
    assert "a" not in absent
    absent.answered("a", absent.asking("a"), exists=False)
    absent.clear()
    assert "a" not in absent


async def test_a_stream_asked_for_early_is_seen_when_it_begins(tmp_path: Path) -> None:
    async with open_store(f"{tmp_path}/log.db") as store:
        for _ in range(2):
            assert await store.stream_version("thread/a") == 0
        event = NewEvent(type="test.ping", data=b"1")
        await store.append(Append(stream="thread/a", events=[event]))
        assert await store.stream_version("thread/a") == 1

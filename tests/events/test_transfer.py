"""Export and import: same positions, same bytes, same seals."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.errors import InputError
from app.events.envelope import NewEvent
from app.events.logstore import LogStore
from app.events.memory import MemoryStore
from app.events.open import open_store
from app.events.seal import head, seal_now
from app.events.store import Append, Fence
from app.events.transfer import export_events, import_events
from app.events.verify import verify
from tests.contract.support import enqueue, life, notes

AWKWARD = [
    b'{"a": [1.50,2e3], "b":"\\u00e9\xc3\xa9"}',
    b'{\n "pretty": true\n}',
    b" {}",
    b"not json",
    b"",
    b"\xff\x00",
    b'"\\ud83d\\ude00"',
    b"null",
]


@pytest.fixture
async def source() -> AsyncIterator[LogStore]:
    async with MemoryStore() as store:
        await store.append(notes("thread/a", "1", "2"))
        await enqueue(store, "r", stream="thread/a", run="n")
        await store.claim(worker="w", limit=1, lease=10)
        started = [life("request.started", "r")]
        await store.append(Append(stream="thread/a", events=started, fence=Fence("r", 1)))
        await seal_now(store)
        events = [NewEvent(type="odd.one", schema=4, data=data) for data in AWKWARD]
        await store.append(Append(stream="user/ü", events=events))
        await seal_now(store)
        yield store


async def exported(store: LogStore, path: Path) -> Path:
    with path.open("wb") as file:
        await export_events(store, file)
    return path


@pytest.mark.parametrize("url", ["memory:", "log.db"])
async def test_moving_house(
    source: LogStore, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = await exported(source, tmp_path / "log.jsonl")
    calls: list[tuple[int, int]] = []
    async with open_store(url) as target:
        count = await import_events(target, path, progress=lambda *args: calls.append(args))
        assert count == await source.head() == calls[-1][0] == calls[-1][1]
        assert [e async for e in target.read()] == [e async for e in source.read()]
        assert (await head(target)).root == (await head(source)).root
        assert target.incarnation != source.incarnation
        report = await verify(target)
        assert report.ok and report.seals == 2, report.problems
        [lease] = await target.leases()
        assert (lease.state, lease.epoch, lease.worker) == ("running", 1, "w")
        assert await target.expire() == ["r"]  # leases do not move house
        again = await exported(target, tmp_path / "again.jsonl")
    lines = path.read_bytes().splitlines()
    assert again.read_bytes().splitlines()[: len(lines)] == lines


async def test_a_line_is_readable_and_holds_the_payload_verbatim(source: LogStore) -> None:
    file = io.BytesIO()
    done = await export_events(source, file, after=2)
    lines = file.getvalue().splitlines()
    assert len(lines) == done == await source.head() - 2
    first = json.loads(lines[0])
    assert (first["seq"], first["type"], first["data"]["request"]) == (3, "request.queued", "r")
    assert AWKWARD[0] in file.getvalue()


async def test_only_into_an_empty_log(source: LogStore, tmp_path: Path) -> None:
    path = await exported(source, tmp_path / "log.jsonl")
    with pytest.raises(InputError, match="not empty"):
        await import_events(source, path)


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (2, lambda text: b"{oops", "line 2"),
        (3, lambda text: b"", "line 3"),
        (2, lambda text: text.replace(b'"seq":2', b'"seq":"2"'), "line 2.*seq"),
        (2, lambda text: text.replace(b'"seq":2', b'"seq":3'), "line 2: expected seq 2"),
        (2, lambda text: text.replace(b'"version":2', b'"version":5'), "line 2: .*version 2"),
        (1, lambda text: text.replace(b'"salt":"', b'"salt":"x'), "line 1"),
        (1, lambda text: text.replace(b'"salt":"', b'"salt":"00'), "line 1: salt has 17 bytes"),
        (1, lambda text: text.replace(b'"type"', b'"kind"'), "line 1.*type"),
        (1, lambda text: text.replace(b'"title"', b'"\xfftle"'), "line 1"),
    ],
)
async def test_a_bad_line_is_named_and_nothing_written(
    source: LogStore, tmp_path: Path, line: int, change: object, message: str
) -> None:
    path = await exported(source, tmp_path / "log.jsonl")
    lines = path.read_bytes().splitlines()
    lines[line - 1] = change(lines[line - 1])  # type: ignore[operator]
    path.write_bytes(b"\n".join(lines) + b"\n")
    async with MemoryStore() as target:
        with pytest.raises(InputError, match=message):
            await import_events(target, path)
        assert await target.head() == 0

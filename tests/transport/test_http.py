"""HTTP: lists, state, events, checks, the UI, and errors as problem details."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from app.events.catalogue import ThreadCreated
from app.events.codec import new
from app.events.envelope import thread_stream
from app.events.ids import uuid7
from app.events.store import Append
from app.projections import state as projection
from app.transport.client import Client
from app.transport.http import application
from app.transport.server import Service
from app.transport.static import StaticFiles
from tests.transport.serving import Response, http


async def talk(service: Service, *contents: str) -> str:
    """Have a conversation; returns its thread once every answer has ended."""
    thread = uuid7()
    async with Client(service.url) as client:
        for content in contents:
            await client.post(thread, content)
    for _ in range(500):
        state = await projection.load(service.store, thread)
        if state and [run.ended is None for run in state.runs] == [False] * len(contents):
            return thread
        await asyncio.sleep(0.02)
    raise AssertionError("the answers did not end")


def problem(response: Response, status: int, field: str | None = None) -> dict[str, Any]:
    assert response.status == status, response.body
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json
    assert body["status"] == status and body["title"] and body["detail"]
    assert body.get("field") == field
    return body


async def test_checks_and_what_this_is(service: Service) -> None:
    url = service.url
    assert (await http(f"{url}/healthz")).json == {"status": "ok"}
    ready = await http(f"{url}/readyz")
    assert ready.status == 200
    assert ready.json["status"] == "ready"
    assert set(ready.json["checks"]) == {"service", "log", "projections", "engine"}
    assert (await http(f"{url}/version")).json == {"version": "0.1.0"}
    info = (await http(f"{url}/api/info")).json
    assert info["incarnation"] == service.store.incarnation
    assert info["engine"] == "disabled" and info["model"] is None
    assert info["database"].endswith("log.db")


async def test_threads_are_listed_page_by_page(service: Service) -> None:
    url = f"{service.url}/api/threads"
    made = [await talk(service, f"fast{n} 1") for n in range(5)]
    assert [row["id"] for row in (await http(url)).json["items"]] == made[::-1]
    seen, before = [], ""
    for _ in range(3):
        page = (await http(f"{url}?limit=2{before}")).json
        seen += [row["id"] for row in page["items"]]
        before = f"&before={page['next']}"
    assert seen == made[::-1]
    assert page["next"] is None
    found = (await http(f"{url}?search=fast3")).json["items"]
    assert [row["id"] for row in found] == [made[3]]
    row = found[0]
    assert row["owner"] == "local" and row["messages"] == 2


async def test_a_list_that_has_not_changed_is_not_sent_again(service: Service) -> None:
    await talk(service, "fast 1")
    first = await http(f"{service.url}/api/threads")
    tag = first.headers["etag"]
    again = await http(f"{service.url}/api/threads", If_None_Match=tag)
    assert (again.status, again.body) == (304, b"")
    await talk(service, "fast 1")
    assert (await http(f"{service.url}/api/threads", If_None_Match=tag)).status == 200


async def test_state_now_and_as_it_was(service: Service) -> None:
    thread = await talk(service, "word 3", "fail")
    url = f"{service.url}/api/threads/{thread}"
    answer = await http(url)
    state = msgspec.convert(answer.json, projection.ThreadState)
    assert state == await projection.load(service.store, thread)
    assert (await http(url, If_None_Match=answer.headers["etag"])).status == 304
    events = await service.store.fetch(stream=thread_stream(thread))
    for event in events[::4]:
        then = (await http(f"{url}?at={event.seq}")).json
        assert then["version"] == event.version
    problem(await http(f"{url}?at=0"), 404)
    problem(await http(f"{url}?at=x"), 400, "at")


async def test_events_page_by_page_are_the_items_of_frames(service: Service) -> None:
    thread = await talk(service, "word 5")
    url, items, after = f"{service.url}/api/threads/{thread}/events", [], 0
    while after is not None:
        page = (await http(f"{url}?after={after}&limit=4")).json
        items += page["items"]
        after = page["next"]
    stored = await service.store.fetch(stream=thread_stream(thread))
    assert [item["v"] for item in items] == [event.version for event in stored]
    assert [item["type"] for item in items] == [event.type for event in stored]
    assert (await http(f"{url}?after=99999")).json == {"items": [], "next": None}


async def test_timeline(service: Service) -> None:
    thread = await talk(service, "word 2")
    spans = (await http(f"{service.url}/api/threads/{thread}/timeline")).json["spans"]
    assert "run" in {span["kind"] for span in spans}


async def test_errors_are_problems(service: Service) -> None:
    url, nobody = service.url, uuid7()
    problem(await http(f"{url}/nowhere"), 404)
    problem(await http(f"{url}/api/nowhere"), 404)
    for path in ("", "/events", "/timeline"):
        problem(await http(f"{url}/api/threads/{nobody}{path}"), 404)
    not_allowed = await http(f"{url}/api/threads", method="POST")
    problem(not_allowed, 405)
    assert "GET" in not_allowed.headers["allow"]
    problem(await http(f"{url}/api/threads?limit=0"), 400, "limit")
    problem(await http(f"{url}/api/threads?limit=201"), 400, "limit")
    problem(await http(f"{url}/api/threads?limit=ten"), 400, "limit")
    problem(await http(f"{url}/api/threads?before=-1"), 400, "before")
    problem(await http(f"{url}/api/threads?before=" + "9" * 400), 400, "before")


async def test_somebody_elses_thread_is_not_shown(service: Service) -> None:
    thread = uuid7()
    created = new(ThreadCreated(owner="somebody"), actor="user:somebody")
    await service.store.append(Append(stream=thread_stream(thread), events=[created]))
    for path in ("", "/events", "/timeline", "?at=1"):
        problem(await http(f"{service.url}/api/threads/{thread}{path}"), 403)
    assert (await http(f"{service.url}/api/threads")).json["items"] == []


async def test_a_bug_is_500_and_says_nothing_of_itself(service: Service) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            if name in ("store", "views", "owners", "cache", "auth", "metrics", "api"):
                return getattr(service, name)
            raise ZeroDivisionError("secret")

    app = application(Broken(), service.gate)  # type: ignore[arg-type]

    def ask() -> tuple[int, Any]:
        with TestClient(app, raise_server_exceptions=False) as client:
            answer = client.get("/api/info", headers={"host": "localhost"})
            return answer.status_code, answer.json()

    status, body = await asyncio.to_thread(ask)
    assert (status, body["title"]) == (500, "Internal Server Error")
    assert "secret" not in str(body)


async def test_browsers_are_told_to_be_careful(service: Service) -> None:
    for path in ("/", "/api/info", "/nowhere"):
        headers = (await http(service.url + path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["server"] is None


def pages(root: Path) -> TestClient:
    """The UI's routes over one folder."""
    files = StaticFiles(root)
    routes = [
        Route("/", files.page),
        Route("/t/{thread}", files.page),
        Route("/static/{path:path}", files.file),
    ]
    return TestClient(Starlette(routes=routes), headers={"accept-encoding": "identity"})


@pytest.fixture
def ui(tmp_path: Path) -> TestClient:
    """A UI of two files."""
    root = tmp_path / "ui"
    (root / "assets").mkdir(parents=True)
    (root / "index.html").write_text("<title>ui</title>")
    (root / "thread.html").write_text("<title>ui</title>")
    (root / "assets" / "app-ABCD2345.js").write_text("let a = 1")
    (root / "assets" / "app-ABCD2345.js.gz").write_bytes(gzip.compress(b"let a = 1"))
    (tmp_path / "secret.txt").write_text("secret")
    return pages(root)


def test_one_page_for_all_conversations(ui: TestClient) -> None:
    for path in ("/", f"/t/{uuid7()}"):
        page = ui.get(path)
        assert (page.status_code, page.text) == (200, "<title>ui</title>")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["cache-control"] == "no-cache"
        again = ui.get(path, headers={"if-none-match": page.headers["etag"]})
        assert again.status_code == 304


def test_hashed_files_are_kept_for_ever_and_sent_compressed(ui: TestClient) -> None:
    plain = ui.get("/static/assets/app-ABCD2345.js")
    assert plain.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert "content-encoding" not in plain.headers
    assert "javascript" in plain.headers["content-type"]
    packed = ui.get("/static/assets/app-ABCD2345.js", headers={"accept-encoding": "br, gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.text == plain.text == "let a = 1"


@pytest.mark.parametrize(
    "path",
    ["nothing.js", "../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "assets", "", "a%00b"],
)
def test_nothing_else_is_served(ui: TestClient, path: str) -> None:
    answer = ui.get(f"/static/{path}")
    assert answer.status_code == 404
    assert answer.text != "secret"


def test_without_a_built_ui_the_page_says_how(tmp_path: Path) -> None:
    answer = pages(tmp_path / "missing").get("/")
    assert answer.status_code == 503
    assert "make install" in answer.text

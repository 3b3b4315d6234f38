"""API keys: who comes in, what they may do, how often, and that a revoked key ends at once."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from app.errors import EverlogError, InputError
from app.events.ids import uuid7
from app.events.memory import MemoryStore
from app.transport import keys
from app.transport.auth import Auth, Bucket, Denied, Principal, bearer, needed
from app.transport.client import Client, ConnectFailed
from app.transport.door import PUBLIC, Door, wanted
from app.transport.origin import Gate
from app.transport.server import Service
from tests.support.postgres import Cluster, new_database
from tests.transport.serving import http, raw, serving
from tests.transport.test_nodes import node

HOUR = 3_600 * 10**9


async def called(
    service: Service, path: str, key: str | None = None, method: str = "GET", **headers: str
) -> Any:
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return await http(service.url + path, method=method, **headers)


# ------------------------------------------------------------------------------ the keys


async def test_a_key_is_found_by_its_text_alone_and_the_log_does_not_have_it() -> None:
    async with MemoryStore() as store:
        made = await keys.create(store, "laptop", scopes=["api"], rate=60, user="local")
        other = await keys.create(store, "phone")
        (event, _) = await store.fetch(stream=keys.STREAM)
        assert made.secret not in event.data.decode()
        assert made.secret.split("_", 2)[2] not in event.data.decode()
        loaded = await keys.load(store)
        assert loaded.find(made.secret) == msgspec.structs.replace(made.key, created=event.time)
        assert other.key.user == "key:phone" and made.key.user == "local"
        wrong = made.secret[:-1] + ("A" if made.secret[-1] != "A" else "B")
        for text in ("", "evl_", made.key.id, f"evl_{made.key.id}", wrong, other.secret[4:], "é"):
            assert loaded.find(text) is None


async def test_names_are_unique_until_revoked_also_when_two_make_one_at_once() -> None:
    async with MemoryStore() as store:
        made = await asyncio.gather(
            *(keys.create(store, "k") for _ in range(4)), return_exceptions=True
        )
        assert sum(isinstance(m, keys.Made) for m in made) == 1
        assert sum(isinstance(m, InputError) for m in made) == 3
        first = await keys.revoke(store, "k")
        with pytest.raises(EverlogError, match="There is no key 'k'"):
            await keys.revoke(store, "k")
        second = (await keys.create(store, "k")).key
        assert (await keys.revoke(store, second.id)).name == "k"
        states = [key.state(time.time_ns()) for key in (await keys.load(store)).all]
        assert states == ["revoked", "revoked"] and first.id != second.id
        with pytest.raises(InputError, match="of the user 'key:k'"):  # hers are the old responses
            await keys.create(store, "k", user="somebody")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "a b"),
        ("name", "x" * 65),
        ("scopes", ["root"]),
        ("scopes", []),
        ("rate", 0),
        ("rate", float("nan")),
        ("concurrency", 0),
        ("expires", 1),
        ("user", "a/b"),
    ],
)
async def test_a_wrong_field_is_named_and_makes_nothing(field: str, value: Any) -> None:
    async with MemoryStore() as store:
        with pytest.raises(InputError) as error:
            await keys.create(store, **{"name": "k", field: value})
        assert error.value.field == field.removesuffix("s") if field == "scopes" else field
        assert await store.head() == 0


def test_where_a_key_is_needed() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert not needed("auto", host)
    for host in ("0.0.0.0", "::", "192.168.1.5", "box", ""):
        assert needed("auto", host)
    assert needed("required", "localhost") and not needed("off", "0.0.0.0")


def test_tokens_of_a_header() -> None:
    assert bearer("Bearer x") == bearer("bearer  x ") == "x"
    assert bearer(None) is bearer("") is bearer("Bearer") is bearer("Basic eDp5") is None


def test_every_path_that_is_not_public_has_a_scope() -> None:
    assert wanted("/api/keys") == wanted("/api/keys/x") == ("admin",)
    assert wanted("/api/threads/x") == wanted("/api/keysx") == ("chat", "read")
    assert wanted("/metrics") == ("read",)
    assert wanted("/v1/models") == wanted("/metricsx") == wanted("//api") == ("api",)


# -------------------------------------------------------------------------------- limits


@given(
    st.floats(0.1, 10_000),
    st.lists(st.floats(0, 120), max_size=60),
)
def test_a_bucket_never_gives_more_than_its_rate(rate: float, waits: list[float]) -> None:
    bucket, now, taken = Bucket(rate, 0.0), 0.0, 0
    for wait in waits:
        now += wait
        later = bucket.take(now)
        taken += later == 0
        assert taken <= max(1.0, rate) + now * rate / 60 + 1e-6
        if later:  # after the time it names, there is one
            now += later + 1e-6
            assert bucket.take(now) == 0
            taken += 1


async def test_a_key_without_limits_has_none_and_slots_are_given_back() -> None:
    async with MemoryStore() as store:
        auth = Auth(store, required=True)
        free = Principal(name="free", key="f")
        for _ in range(1000):
            auth.spend(free)
        tight = Principal(name="tight", key="t", concurrency=1)
        for _ in range(3):
            with auth.slot(tight), pytest.raises(Denied) as error, auth.slot(tight):
                pass
            assert error.value.status == 429 and error.value.headers["retry-after"] == "1"


# ---------------------------------------------------------------------------- the service


async def test_on_loopback_no_key_is_needed_and_a_wrong_one_of_ours_is_refused(
    service: Service,
) -> None:
    assert (await called(service, "/api/threads")).status == 200
    assert (await called(service, "/api/threads", "sk-anything")).status == 200
    assert (await called(service, "/api/threads", "evl_x_y")).status == 401
    made = await keys.create(service.store, "metrics", scopes=["read"])
    await asyncio.sleep(0.05)
    assert (await called(service, "/api/threads", made.secret)).status == 200
    assert (await called(service, "/api/keys", made.secret)).status == 403


async def test_a_page_of_another_site_makes_nothing_without_a_key(service: Service) -> None:
    foreign = await called(service, "/api/keys/x", method="DELETE", origin="https://evil.example")
    assert foreign.status == 403 and "another site" in foreign.json["detail"]
    own = await called(service, "/api/keys/x", method="DELETE", origin=service.url)
    assert own.status == 404


async def test_without_a_key_only_the_page_and_its_health_are_there(tmp_path: Path) -> None:
    async with serving(tmp_path, auth="required") as service:
        for path in ("/healthz", "/readyz", "/version", "/", "/t/x"):
            assert (await called(service, path)).status == 200, path
        for path in ("/api/info", "/api/threads", "/api/keys", "/metrics", "/nothing"):
            assert (await called(service, path)).status == 401, path
        refused = await called(service, "/v1/models", "sk-anything")
        assert refused.status == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert refused.json["error"] == {
            "message": "this API key is wrong",
            "type": "authentication_error",
            "param": None,
            "code": "invalid_api_key",
        }
        problem = await called(service, "/api/info")
        assert problem.headers["content-type"] == "application/problem+json"
        assert problem.json["status"] == 401


async def test_scopes_conversations_and_actors(tmp_path: Path) -> None:
    async with serving(tmp_path, auth="required") as service:
        chat = await keys.create(service.store, "laptop", scopes=["chat"])
        api = await keys.create(service.store, "script", scopes=["api"])
        await asyncio.sleep(0.05)
        assert (await called(service, "/v1/nothing", chat.secret)).status == 403
        assert (await called(service, "/v1/nothing", api.secret)).status == 404
        assert (await called(service, "/api/threads", api.secret)).status == 403
        thread = uuid7()
        async with raw(service.url, hello=False) as client:
            await client.send({"t": "hello", "protocol": "everlog.v1", "token": chat.secret})
            assert (await client.recv())["user"]["id"] == "key:laptop"
            post = {"t": "post", "id": uuid7(), "thread": thread, "content": "fast 1"}
            await client.send(post)
            await client.until("ack")
        events = await service.store.fetch(stream=f"thread/{thread}", limit=2)
        assert {event.actor for event in events} == {"key:laptop"}
        mine = await called(service, "/api/threads", chat.secret)
        assert [row["id"] for row in mine.json["items"]] == [thread]
        other = await keys.create(service.store, "other", scopes=["chat"])
        await asyncio.sleep(0.05)
        assert (await called(service, f"/api/threads/{thread}", other.secret)).status == 403
        theirs = await called(
            service, "/api/threads", other.secret, if_none_match=mine.headers["etag"]
        )
        assert theirs.status == 200 and theirs.json["items"] == []


@pytest.mark.parametrize("token", [None, "evl_no_no", "x"])
async def test_a_socket_without_a_good_key_is_closed(tmp_path: Path, token: str | None) -> None:
    async with (
        serving(tmp_path, auth="required") as service,
        raw(service.url, hello=False) as client,
    ):
        await client.send({"t": "hello", "protocol": "everlog.v1", "token": token})
        code, reason = await client.closed()
        assert code == 4401 and reason and "API key" in reason


async def test_a_revoked_key_closes_what_it_opened(tmp_path: Path) -> None:
    async with serving(tmp_path, auth="required") as service:
        made = await keys.create(service.store, "k")
        await asyncio.sleep(0.05)
        header = {"Authorization": f"Bearer {made.secret}"}
        async with raw(service.url, additional_headers=header) as client:
            await keys.revoke(service.store, "k")
            began = time.monotonic()
            assert (await client.closed())[0] == 4401
            assert time.monotonic() - began < 1
        assert (await called(service, "/v1/models", made.secret)).json["error"]["message"] == (
            "this API key was revoked"
        )


async def test_an_expired_key_closes_what_it_opened(tmp_path: Path) -> None:
    async with serving(tmp_path, auth="required") as service:
        soon = time.time_ns() + HOUR // 3600
        made = await keys.create(service.store, "k", expires=soon)
        await asyncio.sleep(0.05)
        header = {"Authorization": f"Bearer {made.secret}"}
        async with raw(service.url, additional_headers=header) as client:
            assert (await client.closed())[0] == 4401
        assert time.time_ns() >= soon
        assert (await called(service, "/api/info", made.secret)).status == 401


async def test_too_many_requests_and_posts_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, auth="required") as service:
        made = await keys.create(service.store, "k", rate=2)
        await asyncio.sleep(0.05)
        statuses = [
            (await called(service, "/v1/nothing", made.secret, "POST")).status for _ in range(2)
        ]
        assert statuses == [404, 404]
        refused = await called(service, "/v1/nothing", made.secret, "POST")
        assert refused.status == 429 and 1 <= int(refused.headers["retry-after"]) <= 31
        assert refused.json["error"]["type"] == "rate_limit_error"
        assert refused.json["error"]["code"] == "rate_limit_exceeded"
        assert (await called(service, "/v1/nothing", made.secret)).status == 404  # reading is free
        header = {"Authorization": f"Bearer {made.secret}"}
        async with raw(service.url, additional_headers=header) as client:
            post = {"t": "post", "id": uuid7(), "thread": uuid7(), "content": "fast 1"}
            await client.send(post)
            refusal = await client.recv()
            assert (refusal["t"], refusal["code"]) == ("refuse", "limit")
        assert service.auth.refused["rate_limit_exceeded"] == 2


async def test_keys_over_http(tmp_path: Path) -> None:
    async with serving(tmp_path, auth="required") as service:
        admin = await keys.create(service.store, "root", scopes=["admin"])
        await asyncio.sleep(0.05)
        made = await post(service, "/api/keys", admin.secret, {"name": "k", "scopes": ["api"]})
        assert made[0] == 201 and made[1]["secret"].startswith("evl_")
        await asyncio.sleep(0.05)
        listed = (await called(service, "/api/keys", admin.secret)).json["items"]
        assert [(row["name"], row["secret"]) for row in listed] == [("root", None), ("k", None)]
        assert (await called(service, "/v1/nothing", made[1]["secret"])).status == 404
        gone = await called(service, "/api/keys/k", admin.secret, "DELETE")
        assert gone.json["state"] == "revoked"
        assert (await called(service, "/api/keys/k", admin.secret, "DELETE")).status == 404
        for body in (b"", b"{", b'{"name": 1}', b'{"name": "k", "more": 1}', b'"' + b"x" * 70_000):
            assert (await post(service, "/api/keys", admin.secret, body))[0] == 400, body[:20]
        events = await service.store.fetch(stream=keys.STREAM)
        assert [event.actor for event in events] == ["system", "key:root", "key:root"]


async def post(service: Service, path: str, key: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\n"
        f"content-length: {len(data)}\r\nconnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", int(service.url.split(":")[-1]))
    writer.write(head.encode() + data)
    answer = await reader.read()
    writer.close()
    top, _, rest = answer.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(rest)


async def test_a_revoke_works_at_every_node_within_a_second(
    postgres: Cluster, tmp_path: Path
) -> None:
    url = await new_database(postgres)
    async with (
        node(url, None, auth="required", node="one") as one,
        node(url, None, auth="required", node="two") as two,
    ):
        made = await keys.create(one.store, "k")
        await asyncio.sleep(1)
        assert (await called(two, "/v1/nothing", made.secret)).status == 404
        await keys.revoke(one.store, "k")
        await asyncio.sleep(1)
        assert (await called(two, "/v1/nothing", made.secret)).status == 401


# -------------------------------------------------------------------------------- the door


async def test_a_stream_ends_when_its_key_is_revoked() -> None:
    """As if the client had gone: the app may cancel what it has begun."""
    went: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        went.append(scope["everlog.principal"].actor)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async with MemoryStore() as store:
        made = await keys.create(store, "k", concurrency=1)
        auth = Auth(store, required=True)
        await auth.load()
        following = asyncio.create_task(auth.run())
        door = Door(app, auth, Gate("0.0.0.0", []))
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [(b"authorization", f"Bearer {made.secret}".encode())],
        }
        visit = asyncio.create_task(door(dict(scope), receive, send))
        await asyncio.sleep(0.05)
        second: list[Message] = []

        async def send_second(message: Message) -> None:
            second.append(message)

        await door(dict(scope), receive, send_second)
        assert second[0]["status"] == 429 and (b"retry-after", b"1") in second[0]["headers"]
        await keys.revoke(store, "k")
        async with asyncio.timeout(1):
            await visit
        assert went == ["key:k"]
        assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_the_page_on_keys_is_true() -> None:
    text = (Path(__file__).parents[2] / "docs" / "keys.md").read_text()
    for scope in keys.SCOPES:
        assert f"| `{scope}` |" in text
    for path in PUBLIC - {"/", "/favicon.ico"}:
        assert f"`{path}`" in text


async def test_a_client_that_is_locked_out_says_why(tmp_path: Path) -> None:
    async with serving(tmp_path, auth="required") as service:
        assert service.auth.locked_out
        with pytest.raises(ConnectFailed, match="an API key is needed") as error:
            async with Client(service.url):
                pass
        assert error.value.hint and "EVERLOG_KEY" in error.value.hint
        made = await keys.create(service.store, "k")
        await asyncio.sleep(0.05)
        assert not service.auth.locked_out
        async with Client(service.url, token=made.secret) as client:
            assert client.welcome.user.id == "key:k"
            await keys.revoke(service.store, "k")
            with pytest.raises(ConnectFailed, match="of no use any more"):
                async with asyncio.timeout(5):
                    async for _ in client.follow(uuid7()):
                        pass


async def test_openais_client_understands_what_is_denied(tmp_path: Path) -> None:
    async with serving(tmp_path, auth="required") as service:
        made = await keys.create(service.store, "k", scopes=["api"], rate=2)
        chat = await keys.create(service.store, "chat", scopes=["chat"])
        await asyncio.sleep(0.05)

        def client(key: str) -> openai.AsyncOpenAI:
            return openai.AsyncOpenAI(
                base_url=f"{service.url}/v1", api_key=key, max_retries=0, timeout=10
            )

        async with client("sk-wrong") as wrong, client(chat.secret) as other:
            with pytest.raises(openai.AuthenticationError) as denied:
                await wrong.models.list()
            assert denied.value.code == "invalid_api_key"
            with pytest.raises(openai.PermissionDeniedError):
                await other.models.list()
        async with client(made.secret) as right:
            await right.models.list()
            for _ in range(2):
                with pytest.raises(openai.BadRequestError):
                    await right.chat.completions.create(model="m", messages=[])
            with pytest.raises(openai.RateLimitError) as limited:
                await right.chat.completions.create(model="m", messages=[])
            assert limited.value.code == "rate_limit_exceeded"
            assert limited.value.type == "rate_limit_error"
            assert float(limited.value.response.headers["retry-after-ms"]) <= 30_000


@pytest.mark.parametrize("stream", [True, False])
async def test_a_revoked_key_cancels_what_it_asked_for(
    tmp_path: Path, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody computes for a key that is of no use: its request, which waits, is cancelled."""
    async with serving(tmp_path, auth="required") as service:
        made = await keys.create(service.store, "k")
        await asyncio.sleep(0.05)
        body = {"messages": [{"role": "user", "content": "hi"}], "model": "x", "stream": stream}
        asking = asyncio.create_task(post_raw(service, made.secret, body))
        async with asyncio.timeout(10):
            async for events in service.store.follow(types=["request.queued"]):
                assert events[0].actor == "key:k"
                break
        assert not asking.done()
        await keys.revoke(service.store, "k")
        async with asyncio.timeout(2):
            answer = await asking
        assert answer.startswith(b"HTTP/1.1 401 ")  # also a stream: it had not begun
        async with asyncio.timeout(5):
            async for _ in service.store.follow(types=["request.cancelled"]):
                break
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


async def post_raw(service: Service, key: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\nconnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", int(service.url.split(":")[-1]))
    writer.write(head.encode() + data)
    try:
        return await reader.read()
    finally:
        writer.close()

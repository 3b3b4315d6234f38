"""The API with keys, and on several nodes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2

from app.transport import keys
from tests.transport.openai.test_edge import Worker, settled
from tests.transport.openai.test_responses import frames
from tests.transport.serving import serving


async def test_keys_see_their_own(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, auth="required") as service,
        httpx2.AsyncClient(base_url=service.url, timeout=10) as client,
    ):
        made = [await keys.create(service.store, name) for name in ("anna", "ben")]
        mine, other = ({"authorization": f"Bearer {m.secret}"} for m in made)
        body = {"input": "Hello", "background": True}
        for _ in range(100):  # keys are read from the log, a moment later
            answer = await client.post("/v1/responses", json=body, headers=mine)
            if answer.status_code != 401:
                break
            await asyncio.sleep(0.02)
        assert answer.status_code == 200, answer.text
        url = f"/v1/responses/{answer.json()['id']}"
        (first,) = await service.store.fetch(types=["request.queued"])
        assert first.actor == "key:anna"
        assert (await client.get(url, headers=mine)).status_code == 200
        assert (await client.get(url, headers=other)).status_code == 404
        assert (await client.post(f"{url}/cancel", headers=other)).status_code == 404
        follow = {"input": "x", "previous_response_id": answer.json()["id"]}
        refused = await client.post("/v1/responses", json=follow, headers=other)
        assert refused.json()["error"]["param"] == "previous_response_id"
        assert (await client.get(url)).json()["error"]["type"] == "authentication_error"
        cancelled = await client.post(f"{url}/cancel", headers=mine)
        assert cancelled.json()["status"] == "cancelled"
        await settled(service, first.stream, "request.cancelled")


async def test_a_stream_goes_on_at_another_node(tmp_path: Path, postgres_url: str) -> None:
    async with (
        serving(tmp_path, database=postgres_url) as one,
        serving(tmp_path, database=postgres_url) as two,
        httpx2.AsyncClient(base_url=one.url, timeout=10) as here,
        httpx2.AsyncClient(base_url=two.url, timeout=10) as there,
    ):
        body = {"input": "Hello", "background": True}
        made = (await here.post("/v1/responses", json=body)).json()
        url = f"/v1/responses/{made['id']}"
        asking = [
            asyncio.create_task(client.get(url, params={"stream": "true"}))
            for client in (here, there)
        ]
        worker = Worker(two)
        claim = await worker.claim()
        await worker.start(claim)
        await worker.say(claim, "Hi")
        await worker.finish(claim, "Hi")
        first, second = [frames((await answer).content) for answer in asking]
        assert first == second
        assert first[-1]["response"]["output"][0]["content"][0]["text"] == "Hi"
        rest = await there.get(url, params={"stream": "true", "starting_after": "3"})
        assert frames(rest.content) == first[4:]

"""Scripts of other sites: by default they read nothing; those that are named may."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest

from app.transport import keys
from app.transport.server import Service
from tests.transport.serving import serving

PAGE = "https://chat.example"
ASK = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}
BODY = {"prompt": "x", "model": "another"}


@pytest.fixture(params=[[], [f"{PAGE}/"], ["*"]], ids=["none", "named", "any"])
async def setting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[list[str], Service]]:
    """The setting, and a server that has it."""
    folder = tmp_path_factory.mktemp("cors")
    async with serving(folder, cors_origins=request.param) as service:
        yield request.param, service


async def test_what_scripts_of_another_site_may_do(setting: tuple[list[str], Service]) -> None:
    origins, service = setting
    made = await keys.create(service.store, "page", scopes=["api"])
    async with httpx2.AsyncClient(base_url=service.url, headers={"origin": PAGE}) as client:
        asked = await client.options("/tokenize", headers=ASK)
        allowed = asked.headers.get("access-control-allow-origin")
        assert allowed == ({0: None, 1: PAGE}[len(origins)] if origins != ["*"] else "*")
        if origins:
            assert asked.status_code == 200
            assert "x-stainless-os" in asked.headers["access-control-allow-headers"]
        named = origins == [f"{PAGE}/"]
        for method, path, fine in (("POST", "/tokenize", 501), ("GET", "/v1/models", 200)):
            body = BODY if method == "POST" else None
            bare = await client.request(method, path, json=body)
            assert bare.status_code == (fine if named else 403)
            while True:  # until the server knows the key
                key = {"authorization": f"Bearer {made.secret}"}
                answer = await client.request(method, path, json=body, headers=key)
                if answer.status_code != 401:
                    break
            assert answer.status_code == fine
            assert answer.headers.get("access-control-allow-origin") == allowed
            if origins:
                assert "x-request-id" in answer.headers["access-control-expose-headers"]
        other = await client.get("/v1/models", headers={"origin": "https://evil.example"})
        assert other.status_code == 403
        expected = "*" if origins == ["*"] else None
        assert other.headers.get("access-control-allow-origin") == expected

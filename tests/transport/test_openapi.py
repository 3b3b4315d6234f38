"""The OpenAPI document says all that there is, and a server with the real model keeps to it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import validate
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi

from app.transport.http import application
from app.transport.openai.api import Api
from app.transport.openapi import OPERATIONS, document
from app.transport.origin import Gate
from tests.support.server import Server, running

DOCUMENT: dict[str, Any] = json.loads(document())
CHECKS: Any = [
    checks.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_schema_conformance,
]
#: What a generated body gets, so that some get past the reading of messages, and none is long.
SENSIBLE: dict[str, Any] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/embeddings": {"input": "Hi"},
}
SMALL = {"max_tokens": 2, "max_completion_tokens": 2, "max_output_tokens": 2, "n": 1}


def test_it_is_valid() -> None:
    validate(DOCUMENT)


def test_it_has_every_route() -> None:
    source: Any = SimpleNamespace(
        store=None, auth=SimpleNamespace(keys=None), metrics=SimpleNamespace(page=None)
    )
    source.api = Api(source)
    guard: Any = application(source, Gate("127.0.0.1", []))
    served = set()
    for route in guard._app._app.routes:
        path = re.sub(r":path}", "}", route.path)
        served |= {(method, path) for method in route.methods - {"HEAD"}}
    pages = {("GET", "/"), ("GET", "/t/{thread}"), ("GET", "/static/{path}")}
    served = {(method, path) for method, path in served if path != "/v1/{path}"}
    assert served - pages == set(OPERATIONS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the model, on a log of its own."""
    database = tmp_path_factory.mktemp("openapi") / "log.db"
    with running(database, env={"EVERLOG_ENGINE__DTYPE": "float32"}) as server:
        yield server


def sensible(case: Any) -> None:
    """Keep what is generated short; give every second body what it needs to be served."""
    if not isinstance(case.body, dict):
        return
    needed = SENSIBLE.get(case.path)
    if needed is None:
        return
    case.body.update(SMALL if case.path != "/v1/embeddings" else {})
    if len(json.dumps(case.body)) % 2:
        kept = {"stream", "seed", "stop", "user", "temperature", "echo", "logprobs", "background"}
        case.body = {n: v for n, v in case.body.items() if n in {*kept, *SMALL}} | needed


@pytest.mark.model
@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore")  # of the tool's own
def test_a_server_keeps_to_it(server: Server, tmp_path: Path) -> None:
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    served = {op.path for found in schema.get_all_operations() if _try(op := found.ok(), server)}
    assert served > set(SENSIBLE)
    with httpx2.Client(base_url=server.url, timeout=30) as client:
        metrics = client.get("/metrics").text
        for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            values = re.findall(rf"^everlog_{gauge}(?:{{.*}})? (\S+)$", metrics, re.MULTILINE)
            assert {float(value) for value in values} == {0.0}, gauge
        assert client.get("/readyz").status_code == 200


def _try(operation: Any, server: Server) -> bool:
    """Send some requests of a kind; returns whether one was served."""
    statuses: set[int] = set()
    examples = 12 if operation.path in SENSIBLE else 6

    @given(case=operation.as_strategy())
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def attempt(case: Any) -> None:
        sensible(case)
        alone = {"connection": "close"}  # a refused body may end the connection that it came on
        response = case.call(base_url=server.url, timeout=20, headers=alone)
        case.validate_response(response, checks=CHECKS)
        statuses.add(response.status_code)

    attempt()
    return 200 in statuses

"""``/metrics``: what Prometheus reads, once for all processes; the dashboard and the page."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from app.events import catalogue as c
from app.events.codec import new
from app.events.ids import uuid7
from app.events.store import Append, Appended, Fence
from app.transport.metrics import PREFIX
from app.transport.server import Service
from tests.support.postgres import Cluster, new_database
from tests.transport.serving import http, raw, serving
from tests.transport.test_nodes import node, true

DOCS = Path(__file__).parents[2] / "docs"


async def scrape(service: Service, query: str = "") -> dict[str, Metric]:
    answer = await http(f"{service.url}/metrics{query}")
    assert answer.status == 200
    return {metric.name: metric for metric in text_string_to_metric_families(answer.body.decode())}


def value(metrics: dict[str, Metric], name: str, **labels: str) -> float:
    """Sum of the samples of a name (with its ending) that have these labels."""
    samples = (sample for metric in metrics.values() for sample in metric.samples)
    return sum(
        s.value for s in samples if s.name == PREFIX + name and labels.items() <= s.labels.items()
    )


async def ask(service: Service, *, finish: bool = True) -> None:
    """A request as an engine writes it."""
    id, store = uuid7(), service.store
    stream = f"request/{id}"

    async def append(payload: c.Payload, fence: Fence | None = None) -> None:
        event = new(payload, request=id)
        outcome = await store.append(Append(stream=stream, events=[event], fence=fence))
        assert isinstance(outcome, Appended), outcome

    await append(c.RequestQueued(request=id, params=c.SamplingParams(seed=1), prompt=[1, 2]))
    if not finish:
        return
    (claim,) = await store.claim(worker="w", limit=1, lease=60)
    fence = Fence(id, claim.epoch)
    await append(
        c.RequestStarted(request=id, epoch=1, model="m", weights="w", prompt_tokens=2), fence
    )
    await append(
        c.TokensGenerated(
            request=id, epoch=1, batch=0, index=0, tokens=[3, 4], text="x", offsets=[0, 30]
        ),
        fence,
    )
    await append(
        c.RequestFinished(
            request=id,
            epoch=1,
            reason="stop",
            text="x",
            usage=c.Usage(prompt_tokens=2, completion_tokens=2),
            timings=c.Timings(prefill_ms=5, decode_ms=30),
            batches=1,
            digest="d",
        ),
        fence,
    )


async def test_counters_survive_a_restart_and_gauges_do_not_need_to(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        for _ in range(3):
            await ask(service)
        await ask(service, finish=False)
        first = await scrape(service)
        assert value(first, "log_batch_size_sum") >= 13
        assert value(first, "log_append_seconds_count") > 0
    async with serving(tmp_path) as service:
        await ask(service, finish=False)
        await true(lambda: service.views.leading)  # a moment after its start
        found = await scrape(service)
        for metrics in (first, found):
            assert value(metrics, "generation_tokens_total", model_name="m") == 6
            assert value(metrics, "request_success_total", finished_reason="stop") == 3
            assert value(metrics, "time_to_first_token_seconds_count") == 3
            assert value(metrics, "inter_token_latency_seconds_sum") == 0.09
            assert value(metrics, "inter_token_latency_seconds_bucket", le="0.05") == 3
        assert value(first, "num_requests_waiting") == 1
        assert value(found, "num_requests_waiting") == 2
        assert value(found, "num_requests_running") == 0
        assert value(found, "log_head") == await service.store.head()


async def test_clients_and_followers_are_counted_while_they_are_there(service: Service) -> None:
    async with raw(service.url) as client:
        thread = uuid7()
        await client.send({"t": "open", "thread": thread, "after": 0, "incarnation": None})
        await client.until("live")
        await client.send({"t": "post", "id": uuid7(), "thread": thread, "content": "fast 3"})
        await client.until("ack")
        found = await scrape(service)
        assert value(found, "websocket_connections_active") == 1
        assert value(found, "followers") == 1
    await true(lambda: not service.edge.followers)
    found = await scrape(service)
    assert value(found, "websocket_connections_active") == 0
    assert value(found, "followers_behind") == value(found, "follower_lag_events") == 0
    assert value(found, "projection_failed") == 0
    assert {s.labels["projection"] for s in found[f"{PREFIX}projection_lag_events"].samples} == {
        *("history", "timeline", "requests", "metrics")
    }


async def test_a_follower_that_does_not_read_is_behind(service: Service) -> None:
    thread = uuid7()
    big = c.MessagePosted(message=uuid7(), role="user", content="x" * 100_000)
    created = new(c.ThreadCreated(owner="local"))
    await service.store.append(Append(stream=f"thread/{thread}", events=[created]))
    for _ in range(300):
        await service.store.append(Append(stream=f"thread/{thread}", events=[new(big)]))
    async with raw(service.url, max_queue=1, max_size=None, close_timeout=0.1) as client:
        await client.send({"t": "open", "thread": thread, "after": 0, "incarnation": None})
        await asyncio.sleep(0.3)
        found = await scrape(service)
        assert value(found, "followers_behind") == 1
        assert value(found, "follower_lag_events") > 100


async def test_one_of_several_processes_tells_what_is_the_logs(
    postgres: Cluster, tmp_path: Path
) -> None:
    url = await new_database(postgres)
    async with node(url, None, node="one") as one, node(url, None, node="two") as two:
        await ask(one)
        await ask(two)
        await true(lambda: one.views.leading or two.views.leading)
        found = [await scrape(service) for service in (one, two)]
        assert sum(value(metrics, "generation_tokens_total") for metrics in found) == 4
        assert sum(value(metrics, "e2e_request_latency_seconds_count") for metrics in found) == 2
        assert all(value(metrics, "ready") == 1 for metrics in found)
        for service in (one, two):
            assert value(await scrape(service, "?log=1"), "generation_tokens_total") == 4
            assert value(await scrape(service, "?log=0"), "generation_tokens_total") == 0


async def test_formats_names_and_who_may_read(service: Service) -> None:
    answer = await http(service.url + "/metrics", accept="application/openmetrics-text")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert {metric.name for metric in parse_openmetrics(answer.body.decode())}
    assert (await http(service.url + "/metrics?log=2")).status == 400
    for name, metric in (await scrape(service, "?log=1")).items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name), "colons are for recording rules"
        assert metric.documentation.endswith("."), name
        assert name.startswith((PREFIX, "process_")), name


# ----------------------------------------------------------------------- dashboard and page


async def samples(service: Service) -> set[str]:
    """Every name that a query may use."""
    names = set()
    for name, metric in (await scrape(service, "?log=1")).items():
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        names |= {name + ending for ending in endings.get(metric.type, [""])}
    return names


def queries(board: dict[str, Any]) -> list[str]:
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    variables = board["templating"]["list"]
    return found + [v["definition"] for v in variables if v["type"] == "query"]


async def test_the_dashboard_uses_metrics_that_exist(service: Service) -> None:
    board = json.loads((DOCS / "grafana" / "everlog.json").read_text())
    there = await samples(service)
    used = {
        name
        for query in queries(board)
        for name in re.findall(r"\b(?:everlog|process)_[a-z0-9_]+", query)
    }
    assert used and used <= there, used - there
    labels = {
        label for query in queries(board) for label in re.findall(r"[{,]\s*([a-z_]+)=", query)
    }
    assert labels <= {"model_name", "instance", "job"}


def test_the_dashboard_can_be_imported() -> None:
    board = json.loads((DOCS / "grafana" / "everlog.json").read_text())
    assert board["id"] is None and board["uid"] and board["title"] and board["schemaVersion"] >= 36
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["targets"] and panel["description"]
    for query in queries(board):
        assert query.count("(") == query.count(")") and query.count("{") == query.count("}")


async def test_every_metric_is_documented_and_the_page_names_no_other(service: Service) -> None:
    text = (DOCS / "metrics.md").read_text()
    used = set(re.findall(r"\beverlog_[a-z0-9_]+[a-z]", text))
    assert used <= await samples(service)
    for name in await scrape(service, "?log=1"):
        if name.startswith(PREFIX):
            assert f"`{name.removeprefix(PREFIX)}`" in text, name

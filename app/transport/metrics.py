"""``/metrics`` for Prometheus: what the log amounts to, and how this process is.

What is counted of the log would be counted once by every process that tells it, so only the one
that keeps the read models up does (with SQLite there is no other). ``?log=1`` has it told in any
case, for who asks one process on behalf of all; ``?log=0`` never.

Names are vLLM's behind ``everlog_``: in Prometheus a colon is for the names of recording rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response

from app import __version__
from app.engine.host import EngineHost
from app.errors import EverlogError
from app.events.envelope import thread_stream
from app.events.meter import Meter
from app.projections.metrics import FAMILIES
from app.projections.views import Checkpoint, Metered
from app.transport.problem import number

if TYPE_CHECKING:
    from app.transport.service import Service

__all__ = ["PREFIX", "MetricsPage", "folded"]

PREFIX = "everlog_"
PART_SECONDS = 2.0
"""Longest wait for a part; what does not come by then is left out."""
LOOKED_AT = 200
"""Most followers whose distance to the head is looked up."""


class MetricsPage:
    """The route."""

    def __init__(self, subject: Service) -> None:
        self._subject = subject
        self._process = ProcessCollector(registry=CollectorRegistry())

    async def page(self, request: Request) -> Response:
        """Answer a scrape: text, or OpenMetrics for who asks for it."""
        wanted = number(request, "log", -1, most=1)
        tells = self._subject.views.leading if wanted < 0 else bool(wanted)
        parts = await asyncio.gather(
            _part(self._log()) if tells else _nothing(),
            _part(self._projections()),
            _part(self._followers()),
            _part(self._spans()),
        )
        found = [*self._own(), *(metric for part in parts for metric in part or ())]
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(_Given(found)), headers={"Content-Type": kind})

    # --------------------------------------------------------------------------- the log

    async def _log(self) -> list[Metric]:
        views, store = self._subject.views, self._subject.store
        try:  # as current as it can be, but rather late than missing
            async with asyncio.timeout(PART_SECONDS / 2):
                await views.reached(await store.head(), "metrics")
        except (TimeoutError, EverlogError):
            pass
        metered = await views.metrics()
        head = _gauge("log_head", "Position of the last event of the log.", await store.head())
        return [*folded(metered), *_under_way(metered, self._subject.served), head]

    async def _projections(self) -> list[Metric]:
        points: list[Checkpoint] = await self._subject.views.checkpoints()
        lag = GaugeMetricFamily(
            f"{PREFIX}projection_lag_events",
            "Events between a projection and the head of the log.",
            labels=["projection"],
        )
        failed = GaugeMetricFamily(
            f"{PREFIX}projection_failed", "1 if it stands still on an error.", labels=["projection"]
        )
        for point in points:
            lag.add_metric([point.name], point.behind)
            failed.add_metric([point.name], point.error is not None)
        return [lag, failed]

    async def _followers(self) -> list[Metric]:
        edge, store = self._subject.edge, self._subject.store
        lag = 0
        for delivery in list(edge.behind)[:LOOKED_AT]:
            head = await store.stream_version(thread_stream(delivery.thread))
            lag = max(lag, head - delivery.cursor)
        return [
            _gauge("followers", "Conversations that clients have open here.", edge.followers),
            _gauge("followers_behind", "Those not caught up with.", len(edge.behind)),
            _gauge("follower_lag_events", "Events the slowest of them has still to get.", lag),
        ]

    async def _spans(self) -> list[Metric]:
        """How the export of spans gets on, where this process does it."""
        telemetry = self._subject.telemetry
        if telemetry is None or telemetry.place is None:
            return []
        lag = await self._subject.store.head() - telemetry.place
        about = "1 if no spans can be exported now."
        return [
            _gauge("telemetry_lag_events", "Events whose spans were not exported yet.", lag),
            _gauge("telemetry_failed", about, telemetry.trouble is not None),
        ]

    # ----------------------------------------------------------------------- this process

    def _own(self) -> Iterator[Metric]:
        subject = self._subject
        build = GaugeMetricFamily(f"{PREFIX}build_info", "This server.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        yield _gauge("ready", "1 while the service takes commands.", subject.state == "ready")
        yield _gauge("engine_ready", "1 while an engine is at work.", subject.engine == "ready")
        yield _gauge("websocket_connections_active", "Connected clients.", len(subject.hub.open))
        yield _gauge("runs_active", "Calls of handlers under way here.", subject.runtime.active)
        waits, sizes = subject.store.meters
        about = "From an append to its commit; the longest of each batch."
        yield _meter("log_append_seconds", about, waits)
        yield _meter("log_batch_size", "Appends of a commit.", sizes)
        refused = CounterMetricFamily(
            f"{PREFIX}auth_refused", "Requests that were denied, by why.", labels=["code"]
        )
        for code, times in subject.auth.refused.items():
            refused.add_metric([code], times)
        yield refused
        yield from _cache(subject.host)
        yield from self._process.collect()


class _Given(Collector):
    """Metrics that are collected already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._metrics


async def _part(metrics: Awaitable[list[Metric]]) -> list[Metric] | None:
    """Await a part of the page; None if it does not come."""
    try:
        async with asyncio.timeout(PART_SECONDS):
            return await metrics
    except (TimeoutError, EverlogError):
        return None


async def _nothing() -> None:
    return None


def folded(metered: Metered) -> list[Metric]:
    """Return what was folded from the log as families of Prometheus."""
    counters, histograms = {}, {}
    for family in FAMILIES.values():
        name, about, labels = PREFIX + family.name, family.about, list(family.labels)
        if family.kind == "counter":
            counters[family.name] = CounterMetricFamily(name, about, labels=labels)
        else:
            histograms[family.name] = HistogramMetricFamily(name, about, labels=labels)
    for count in metered.counts:
        if count.name in counters:
            values = [count.a, count.b][: len(FAMILIES[count.name].labels)]
            counters[count.name].add_metric(values, count.value)
    for spread in metered.spreads:
        if spread.name in histograms:
            buckets = _buckets(FAMILIES[spread.name].bounds, spread.counts)
            histograms[spread.name].add_metric([spread.a], buckets, spread.sum)
    return [*counters.values(), *histograms.values()]


def _under_way(metered: Metered, served: Sequence[str]) -> list[Metric]:
    """Gauges of the requests that have not ended; those that name no model are for the only one."""
    found: dict[tuple[bool, str], int] = {}
    for model, running, many in metered.flights:
        name = served[0] if model == "unknown" and len(served) == 1 else model
        found[running, name] = found.get((running, name), 0) + many
    models = {name for _, name in found} | set(served)
    gauges: list[Metric] = []
    for running, name, about in (
        (True, "num_requests_running", "Requests in a batch of an engine."),
        (False, "num_requests_waiting", "Requests that wait for a place in a batch."),
    ):
        gauge = GaugeMetricFamily(PREFIX + name, about, labels=["model_name"])
        for model in sorted(models):
            gauge.add_metric([model], found.get((running, model), 0))
        gauges.append(gauge)
    return gauges


def _cache(host: EngineHost | None) -> Iterator[Metric]:
    """The KV cache of this process's engine."""
    usage = GaugeMetricFamily(
        f"{PREFIX}kv_cache_usage_perc",
        "Part of the KV cache that requests hold, 0 to 1.",
        labels=["model_name"],
    )
    config = GaugeMetricFamily(
        f"{PREFIX}cache_config_info",
        "The KV cache.",
        labels=["model_name", "block_size", "num_blocks"],
    )
    if host is not None and host.model is not None:
        model = host.model
        usage.add_metric([model.model], host.cache_usage)
        config.add_metric([model.model, str(model.block_size), str(model.blocks)], 1)
    yield usage
    yield config


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, about, value=value)


def _meter(name: str, about: str, meter: Meter) -> Metric:
    return HistogramMetricFamily(
        PREFIX + name, about, buckets=_buckets(meter.bounds, meter.counts), sum_value=meter.sum
    )


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Upper bounds, and how many values are at or below each."""
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    return list(zip(names, map(float, accumulate(counts)), strict=True))

"""The metrics projection: counters and histograms that are folds of the log.

They survive restarts, count an event once however many processes there are, and can be counted
anew from the first event. Names, labels and buckets are vLLM's where it has the same thing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import chain
from operator import sub
from typing import Any, Literal

import msgspec

from app.events import catalogue as c
from app.events.envelope import Event
from app.projections.database import Connection
from app.projections.projection import Projection, handles
from app.projections.reading import Burst
from app.projections.rows import Rows, Table

__all__ = ["FAMILIES", "Count", "Family", "Metrics", "Spread", "counts", "flights", "spreads"]

_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_FIRST = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_BETWEEN_MS = tuple(bound * 1e3 for bound in _BETWEEN)
_TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))
_FEW = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)

_MODEL = ("model_name",)


class Family(msgspec.Struct, frozen=True):
    """A metric: its name without the prefix (and without ``_total``), and what it says.

    ``bounds`` are the upper bounds of a histogram's buckets, without the last, which is infinite.
    """

    kind: Literal["counter", "histogram"]
    name: str
    about: str
    labels: tuple[str, ...] = _MODEL
    bounds: tuple[float, ...] = ()


def _counter(name: str, about: str, labels: tuple[str, ...] = _MODEL) -> Family:
    return Family("counter", name, about, labels)


def _histogram(name: str, about: str, bounds: tuple[float, ...]) -> Family:
    return Family("histogram", name, about, _MODEL, bounds)


_ALL = (
    _counter("prompt_tokens", "Tokens of prompts, counted when a request starts."),
    _counter("prompt_tokens_cached", "Tokens of prompts that were taken from the prefix cache."),
    _counter("generation_tokens", "Tokens that were generated and committed."),
    _counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    _counter("prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    _counter("spec_decode_num_draft_tokens", "Tokens computed ahead for requests that ended."),
    _counter("spec_decode_num_accepted_tokens", "Those of them that became output."),
    _counter("num_preemptions", "How often a request lost its KV blocks to another."),
    _counter("num_abandoned", "How often a request lost its worker, and waited for another."),
    _counter(
        "request_success",
        "Requests that ended: stop, length, abort (cancelled), timeout, or error.",
        ("model_name", "finished_reason"),
    ),
    _counter("worker_crashes", "Engine cores that died.", ("worker",)),
    _counter("chat_runs", "Calls of handlers that ended.", ("outcome",)),
    _histogram("time_to_first_token_seconds", "From queued to its first committed token.", _FIRST),
    _histogram("inter_token_latency_seconds", "Between two tokens of a request.", _BETWEEN),
    _histogram(
        "request_time_per_output_token_seconds",
        "Mean time of a finished request's tokens after the first.",
        _BETWEEN,
    ),
    _histogram(
        "e2e_request_latency_seconds", "From queued to its end, however it ended.", _SECONDS
    ),
    _histogram(
        "request_queue_time_seconds", "From queued to its first place in a batch.", _SECONDS
    ),
    _histogram("request_prefill_time_seconds", "From its start to its first token.", _SECONDS),
    _histogram("request_decode_time_seconds", "From its first token to its last.", _SECONDS),
    _histogram("request_inference_time_seconds", "From its start to its last token.", _SECONDS),
    _histogram("request_prompt_tokens", "Prompt tokens of a finished request.", _TOKENS),
    _histogram("request_generation_tokens", "Output tokens of a finished request.", _TOKENS),
    _histogram("request_params_max_tokens", "The max_tokens of a finished request.", _TOKENS),
    _histogram("request_num_preemptions", "Preemptions of a finished request.", _FEW),
)
FAMILIES = {family.name: family for family in _ALL}
"""All metrics of the log, by name."""


class Count(msgspec.Struct):
    """A counter. ``a`` and ``b`` are the values of its labels, empty where it has fewer."""

    name: str
    a: str
    b: str
    value: int = 0


class Spread(msgspec.Struct):
    """A histogram: how many values were in each bucket (the last is infinite), and their sum.

    The sum is kept in millionths: whole numbers come to the same in whatever order they are added.
    """

    name: str
    a: str
    counts: list[int]
    millionths: int = 0

    @property
    def sum(self) -> float:
        """The sum in the unit of the metric."""
        return self.millionths / 1e6


class Flight(msgspec.Struct):
    """A request that has not ended. Times are ns.

    ``offset`` is of the last token of ``epoch``, in ms as in `TokensGenerated`; None if not known.
    """

    id: str
    stream: str
    model: str
    queued: int
    max_tokens: int | None
    started: bool = False
    running: bool = False
    epoch: int = 0
    last: int | None = None
    offset: float | None = None
    output: int = 0
    preempted: int = 0


COUNT = Table("count", Count, key=("name", "a", "b"))
SPREAD = Table("spread", Spread, key=("name", "a"))
FLIGHT = Table("flight", Flight, key=("id",))

_OUTCOME: dict[Any, str] = {
    c.RunCompleted: "completed",
    c.RunFailed: "failed",
    c.RunStopped: "stopped",
    c.RunInterrupted: "interrupted",
}


def _add(rows: Rows, name: str, a: str, b: str = "", by: int = 1) -> None:
    row = rows.edit(COUNT, name, a, b) or rows.add(COUNT, Count(name, a, b))
    row.value += by


def _spread(rows: Rows, name: str, a: str) -> Spread:
    row = rows.edit(SPREAD, name, a)
    if row is None:
        row = rows.add(SPREAD, Spread(name, a, [0] * (len(FAMILIES[name].bounds) + 1)))
    return row


def _observe(rows: Rows, name: str, a: str, value: float) -> None:
    row = _spread(rows, name, a)
    row.counts[bisect_left(FAMILIES[name].bounds, value)] += 1
    row.millionths += round(value * 1e6)


class Metrics(Projection):
    """Counters and histograms. What is under way has a row of its own until it ends."""

    name = "metrics"
    version = 2
    tables = (COUNT, SPREAD, FLIGHT)

    # ------------------------------------------------------------------------- requests

    @handles(c.RequestQueued)
    def queued(self, rows: Rows, event: Event, data: c.RequestQueued) -> None:
        if rows.get(FLIGHT, data.request) is None:
            rows.add(
                FLIGHT,
                Flight(
                    data.request,
                    event.stream,
                    data.model or "unknown",
                    event.time,
                    data.params.max_tokens,
                ),
            )

    def _flight(self, rows: Rows, event: Event, id: str) -> Flight | None:
        row = rows.edit(FLIGHT, id)
        return row if row is not None and row.stream == event.stream else None

    @handles(c.RequestStarted)
    def started(self, rows: Rows, event: Event, data: c.RequestStarted) -> None:
        row = self._flight(rows, event, data.request)
        if row is None:
            return
        row.running = True
        if row.started:  # computed again elsewhere: counted once
            return
        row.started, row.model = True, data.model
        _add(rows, "prompt_tokens", row.model, by=data.prompt_tokens)
        _add(rows, "prefix_cache_queries", row.model, by=data.prompt_tokens)
        _add(rows, "prefix_cache_hits", row.model, by=data.cached_tokens)
        _add(rows, "prompt_tokens_cached", row.model, by=data.cached_tokens)
        _observe(rows, "request_queue_time_seconds", row.model, max(0.0, data.queue_ms / 1e3))

    @handles(c.RequestPreempted)
    def preempted(self, rows: Rows, event: Event, data: c.RequestPreempted) -> None:
        row = self._flight(rows, event, data.request)
        if row is not None:
            row.preempted += 1
            row.running = False
            _add(rows, "num_preemptions", row.model)

    @handles(c.RequestAbandoned)
    def abandoned(self, rows: Rows, event: Event, data: c.RequestAbandoned) -> None:
        row = self._flight(rows, event, data.request)
        if row is not None:
            row.running = False
            _add(rows, "num_abandoned", row.model)

    @handles(c.RequestResumed)
    def resumed(self, rows: Rows, event: Event, data: c.RequestResumed) -> None:
        row = self._flight(rows, event, data.request)
        if row is not None:
            row.running = True

    @handles(Burst)
    def tokens(self, rows: Rows, event: Event, burst: Burst) -> None:
        """Most events are these, so this one minds the microseconds."""
        row = rows.edit(FLIGHT, burst.request)
        if row is None or row.stream != event.stream:
            return
        number, output = 0, row.output
        offsets = [] if row.offset is None else [row.offset]
        for first, last, data, tokens, came in _parts(burst, output):
            if data.index < output or not tokens:
                continue
            if data.epoch != row.epoch or row.last is None:
                self._between(rows, row, offsets)
                self._first(rows, first, row)
                row.epoch, offsets = data.epoch, []
            offsets += came
            number += tokens
            output, row.last = data.index + tokens, last.time
        if number:
            row.output = output
            _add(rows, "generation_tokens", row.model, by=number)
            self._between(rows, row, offsets)

    def _between(self, rows: Rows, row: Flight, offsets: list[float]) -> None:
        """Count the times between tokens that came at these offsets (ms), each after the other."""
        row.offset = offsets[-1] if offsets else None
        if len(offsets) < 2:
            return
        spread = _spread(rows, "inter_token_latency_seconds", row.model)
        spread.millionths += round(offsets[-1] * 1e3) - round(offsets[0] * 1e3)
        gaps = sorted(map(sub, offsets[1:], offsets))
        counts, done = spread.counts, 0
        for at, bound in enumerate(_BETWEEN_MS):
            upto = bisect_right(gaps, bound, done)
            counts[at] += upto - done
            done = upto
            if done == len(gaps):
                return
        counts[-1] += len(gaps) - done

    def _first(self, rows: Rows, event: Event, row: Flight) -> None:
        """Count the time before the first token of a request, or of a worker that goes on."""
        if row.last is None:
            seconds = max(0, event.time - row.queued) / 1e9
            _observe(rows, "time_to_first_token_seconds", row.model, seconds)
        else:
            gap = max(0, event.time - row.last) / 1e9
            _observe(rows, "inter_token_latency_seconds", row.model, gap)

    @handles(c.RequestFinished)
    def finished(self, rows: Rows, event: Event, data: c.RequestFinished) -> None:
        row = self._flight(rows, event, data.request)
        if row is None:
            return
        model, usage, timings = row.model, data.usage, data.timings
        prefill, decode = timings.prefill_ms / 1e3, timings.decode_ms / 1e3
        _observe(rows, "request_prefill_time_seconds", model, prefill)
        _observe(rows, "request_decode_time_seconds", model, decode)
        _observe(rows, "request_inference_time_seconds", model, prefill + decode)
        _observe(rows, "request_prompt_tokens", model, usage.prompt_tokens)
        _observe(rows, "request_generation_tokens", model, usage.completion_tokens)
        _observe(rows, "request_num_preemptions", model, row.preempted)
        if row.max_tokens is not None:
            _observe(rows, "request_params_max_tokens", model, row.max_tokens)
        if usage.completion_tokens > 1:
            each = decode / (usage.completion_tokens - 1)
            _observe(rows, "request_time_per_output_token_seconds", model, each)
        self._end(rows, event, row, data.reason, usage)

    @handles(c.RequestFailed)
    def failed(self, rows: Rows, event: Event, data: c.RequestFailed) -> None:
        row = self._flight(rows, event, data.request)
        if row is not None:
            reason = "timeout" if data.code == "timeout" else "error"
            self._end(rows, event, row, reason, data.usage)

    @handles(c.RequestCancelled)
    def cancelled(self, rows: Rows, event: Event, data: c.RequestCancelled) -> None:
        row = self._flight(rows, event, data.request)
        if row is not None:
            self._end(rows, event, row, "abort", data.usage)

    def _end(
        self, rows: Rows, event: Event, row: Flight, reason: str, usage: c.Usage | None
    ) -> None:
        _add(rows, "request_success", row.model, reason)
        seconds = max(0, event.time - row.queued) / 1e9
        _observe(rows, "e2e_request_latency_seconds", row.model, seconds)
        # Tokens that were erased from the log since: how many there were is still known.
        if usage is not None and usage.completion_tokens > row.output:
            more = usage.completion_tokens - row.output
            _add(rows, "generation_tokens", row.model, by=more)
        if usage is not None and usage.draft_tokens:
            _add(rows, "spec_decode_num_draft_tokens", row.model, by=usage.draft_tokens)
            _add(rows, "spec_decode_num_accepted_tokens", row.model, by=usage.accepted_tokens)
        rows.remove(FLIGHT, row.id)

    # ---------------------------------------------------------------- workers and chats

    @handles(c.WorkerCrashed)
    def crashed(self, rows: Rows, event: Event, data: c.WorkerCrashed) -> None:
        _add(rows, "worker_crashes", data.worker)

    @handles(c.RunCompleted, c.RunFailed, c.RunStopped, c.RunInterrupted)
    def run(self, rows: Rows, event: Event, data: Any) -> None:
        _add(rows, "chat_runs", _OUTCOME[type(data)])


def _parts(
    burst: Burst, output: int
) -> list[tuple[Event, Event, c.TokensGenerated, int, list[float]]]:
    """Batches, or all at once: first and last event, first batch, number of tokens, offsets."""
    events, batches = burst.events, burst.batches
    if burst.smooth and batches[0].index >= output:
        offsets = list(chain.from_iterable([data.offsets for data in batches]))
        return [(events[0], events[-1], batches[0], burst.tokens, offsets)]
    return [
        (event, event, data, len(data.tokens), data.offsets)
        for event, data in zip(events, batches, strict=True)
    ]


def counts(connection: Connection, prefix: str) -> list[Count]:
    """Read all counters; ``prefix`` is that of the tables that serve."""
    sql = f"SELECT {COUNT.names} FROM {prefix}count ORDER BY name, a, b"
    return [COUNT.unpack(row) for row in connection.all(sql)]


def flights(connection: Connection, prefix: str) -> list[tuple[str, bool, int]]:
    """Count the requests that have not ended: model, whether it runs, how many."""
    sql = f"SELECT model, running, count(*) FROM {prefix}flight GROUP BY model, running"
    return [(model, bool(running), number) for model, running, number in connection.all(sql)]


def spreads(connection: Connection, prefix: str) -> list[Spread]:
    """Read all histograms."""
    sql = f"SELECT {SPREAD.names} FROM {prefix}spread ORDER BY name, a"
    return [SPREAD.unpack(row) for row in connection.all(sql)]

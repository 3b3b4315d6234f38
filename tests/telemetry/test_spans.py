"""Spans out of events: no store, no receiver."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from app.events import catalogue as c
from app.events.codec import new, readable
from app.events.envelope import Event
from app.telemetry import context
from app.telemetry import spans as telemetry
from app.telemetry.spans import Fold, Span, span_id, trace_id
from tests.projections.histories import History, histories

SECRET = "the cat is called Mona"


class Story:
    """Events of one stream, a second apart."""

    def __init__(self, stream: str = "thread/t") -> None:
        self.stream = stream
        self.events: list[Event] = []

    def add(self, payload: c.Payload, *, run: str | None = None) -> None:
        made = new(payload, run=run, request=getattr(payload, "request", None))
        version = len(self.events) + 1
        event = Event(
            seq=version,
            stream=self.stream,
            version=version,
            type=made.type,
            schema=made.schema,
            time=version * 10**9,
            actor="system",
            request=made.request,
            run=run,
            cause=None,
            data=made.data,
        )
        self.events.append(event)

    def request(self, request: str, *, run: str | None = None, **fields: Any) -> None:
        """Queued to finished."""
        asked = {
            "text": SECRET,
            "params": c.SamplingParams(temperature=0.5, max_tokens=9),
            **fields,
        }
        self.add(c.RequestQueued(request=request, **asked), run=run)
        self.add(c.RequestClaimed(request=request, epoch=1, worker="w"), run=run)
        self.add(
            c.RequestStarted(request=request, epoch=1, model="m", weights="x", prompt_tokens=7),
            run=run,
        )
        self.add(
            c.RequestFinished(
                request=request,
                epoch=1,
                reason="length",
                text=SECRET,
                usage=c.Usage(prompt_tokens=7, completion_tokens=9, cached_tokens=4),
                timings=c.Timings(queue_ms=1, prefill_ms=2, decode_ms=3),
                batches=1,
                digest="",
            ),
            run=run,
        )

    def spans(self, *, content: bool = False) -> list[Span]:
        fold = Fold(content=content)
        found = [span for event in self.events for span in applied(fold, event)]
        assert len(fold) == 0
        return found


def applied(fold: Fold, event: Event) -> list[Span]:
    payload = readable(event)
    return [] if payload is None else fold.apply(event, payload)


def chat() -> Story:
    """A run with a tool, in it a step for a request."""
    story = Story()
    story.add(c.RunStarted(run="r", hook="on_message", node="n"), run="r")
    story.add(c.StepStarted(step="s", name="search", kind="tool", input={"q": SECRET}), run="r")
    story.add(c.StepStarted(step="i", name="llm", kind="llm", parent="s", request="q"), run="r")
    story.request("q", run="r", messages=[c.ChatMessage(role="user", content=SECRET)], text=None)
    story.add(c.StepCompleted(step="i"), run="r")
    story.add(c.StepCompleted(step="s", output=SECRET), run="r")
    story.add(c.RunCompleted(run="r"), run="r")
    return story


def test_a_run_is_a_trace() -> None:
    request, inner, tool, run = chat().spans()
    assert [s.name for s in (request, inner, tool, run)] == [
        "chat m",
        "llm",
        "execute_tool search",
        "on_message",
    ]
    assert {s.trace for s in (request, inner, tool, run)} == {trace_id("run", "r")}
    assert run.parent is None
    assert (tool.parent, inner.parent, request.parent) == (run.id, tool.id, inner.id)
    assert run.id == span_id("run", "r")
    assert (run.start, run.end) == (1 * 10**9, 10 * 10**9)
    assert (request.start, request.end) == (4 * 10**9, 7 * 10**9)
    assert [s.client for s in (request, inner, tool, run)] == [True, False, False, False]
    assert [name for _, name in request.marks] == ["request.claimed", "request.started"]
    assert run.attributes == {
        "gen_ai.provider.name": "everlog",
        "gen_ai.system": "everlog",
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.conversation.id": "t",
        "everlog.run.id": "r",
        "everlog.run.hook": "on_message",
        "everlog.node": "n",
        "everlog.run.state": "completed",
    }
    assert tool.attributes["gen_ai.tool.name"] == "search"


def test_a_request_as_the_conventions_have_it() -> None:
    (request, *_) = chat().spans()
    assert request.attributes == {
        "gen_ai.provider.name": "everlog",
        "gen_ai.system": "everlog",
        "gen_ai.operation.name": "chat",
        "gen_ai.conversation.id": "t",
        "gen_ai.request.model": "m",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.output.type": "text",
        "gen_ai.response.id": "q",
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 9,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "everlog.request.priority": 0,
        "everlog.request.state": "finished",
        "everlog.request.queue_ms": 1,
        "everlog.request.prefill_ms": 2,
        "everlog.request.decode_ms": 3,
        "everlog.worker": "w",
    }


def test_texts_are_there_only_if_they_are_wanted() -> None:
    assert SECRET not in repr(chat().spans())
    request, _, tool, _ = chat().spans(content=True)
    for name in ("gen_ai.input.messages", "gen_ai.output.messages"):
        assert SECRET in str(request.attributes[name])
    for name in ("gen_ai.tool.call.arguments", "gen_ai.tool.call.result"):
        assert SECRET in str(tool.attributes[name])


def test_requests_of_one_call_are_one_trace() -> None:
    story = Story("request/a")
    for request in ("a", "b"):
        story.request(request, embed=c.Embedding(dimensions=2))
    first, second = story.spans()
    assert first.trace == second.trace == trace_id("stream", "request/a")
    assert first.id != second.id
    assert (first.name, first.parent) == ("embeddings m", None)
    assert "gen_ai.request.temperature" not in first.attributes


def test_a_caller_may_have_a_trace_of_its_own() -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    story = Story("request/a")
    story.request("a", metadata={"traceparent": parent})
    (span,) = story.spans()
    assert f"{span.trace:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert f"{span.parent:016x}" == "00f067aa0ba902b7"
    assert context.parse("cc" + parent[2:] + "-what the future brings") is not None
    for wrong in (
        *(None, 7, "", parent + "-", parent.upper(), parent[:-1], "ff" + parent[2:]),
        *(parent.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), parent + "-x"),
    ):
        assert context.parse(wrong) is None, wrong


def test_ends_that_are_not_good() -> None:
    story = Story()
    story.add(c.RunStarted(run="r", hook="on_message", node="n"), run="r")
    story.add(c.StepStarted(step="s", name="a"), run="r")
    story.add(c.RequestQueued(request="q", params=c.SamplingParams(), text="x"), run="r")
    story.add(c.RequestFailed(request="q", code="timeout", message=SECRET), run="r")
    story.add(c.RequestQueued(request="p", params=c.SamplingParams(), text="x"), run="r")
    story.add(c.RequestCancelled(request="p", text=SECRET), run="r")
    info = c.ErrorInfo(kind="ValueError", message=SECRET)
    story.add(c.RunFailed(run="r", error=info), run="r")
    failed, cancelled, left, run = story.spans()
    assert (failed.error, cancelled.error, left.error, run.error) == (
        "timeout",
        None,
        None,
        "ValueError",
    )
    assert cancelled.attributes["everlog.request.state"] == "cancelled"
    assert left.attributes["everlog.step.state"] == "failed"
    assert SECRET not in repr([failed, cancelled, left, run])


@settings(deadline=None)
@given(log=histories(), data=st.data())
def test_whoever_begins_in_the_middle_says_the_same(log: History, data: st.DataObject) -> None:
    """Odd histories too: what ends behind any point, with what came before looked up."""
    middle = data.draw(st.integers(0, len(log.events)))
    fold = Fold()
    whole = [(event.seq, span) for event in log.events for span in applied(fold, event)]
    late, looked = Fold(), set[str]()
    part: list[tuple[int, Span]] = []
    for place, event in enumerate(log.events[middle:], middle):
        payload = readable(event)
        if payload and late.missing(event, payload) and event.stream not in looked:
            looked.add(event.stream)
            for earlier in log.events[:place]:
                if earlier.stream == event.stream and earlier.type in telemetry.TYPES:
                    applied(late, earlier)
        part += [(event.seq, span) for span in applied(late, event)]
    behind = log.events[middle - 1].seq if middle else 0
    assert part == [(seq, span) for seq, span in whole if seq > behind]

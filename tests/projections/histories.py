"""Histories to fold: written by hand, one call an event, or drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from app.events import catalogue as c
from app.events.codec import new
from app.events.envelope import Event
from app.events.lifecycle import TERMINAL, TRANSITIONS
from app.events.logstore import LogStore

__all__ = ["BY_HAND", "History", "histories", "write"]

SECOND = 10**9


class History:
    """A log being written: each event a second after the one before."""

    def __init__(self, thread: str = "t") -> None:
        self.thread = thread
        self.events: list[Event] = []
        self.versions: dict[str, int] = {}
        self.states: dict[str, str] = {}
        self.epochs: dict[str, int] = {}
        self.batches: dict[str, int] = {}

    def add(
        self,
        payload: c.Payload,
        *,
        run: str | None = None,
        thread: str | None = None,
        stream: str | None = None,
    ) -> Event:
        """Append an event; legal or not."""
        stream = stream or f"thread/{thread or self.thread}"
        request = (
            getattr(payload, "request", None) if type(payload).__name__ in _OF_REQUEST else None
        )
        entry = new(payload, request=request, run=run)
        return self.raw(stream, entry.type, entry.data, request=request, run=run)

    def raw(self, stream: str, type: str, data: bytes, **more: Any) -> Event:
        """Append an event of any type with any payload."""
        seq = len(self.events) + 1
        self.versions[stream] = self.versions.get(stream, 0) + 1
        event = Event(
            seq=seq,
            stream=stream,
            version=self.versions[stream],
            type=type,
            schema=more.pop("schema", 1),
            time=seq * SECOND,
            actor="system",
            request=more.get("request"),
            run=more.get("run"),
            cause=None,
            data=data,
        )
        self.events.append(event)
        return event

    def ask(self, n: int = 1, *, bind: bool = True) -> None:
        """What posting a question and queueing its request writes."""
        if n == 1:
            self.add(c.ThreadCreated(owner="local"))
        self.add(c.MessagePosted(message=f"u{n}", role="user", content=f"question {n}"))
        self.add(c.RunStarted(run=f"r{n}", hook="on_message", node="n1", message=f"u{n}"))
        if bind:
            self.add(c.MessageStarted(message=f"a{n}", request=f"q{n}"), run=f"r{n}")
        self.move(f"q{n}", "request.queued", run=f"r{n}")

    def generate(self, request: str, *texts: str) -> None:
        """Claim and start a queued request, then commit token batches."""
        if self.states[request] == "queued":
            self.move(request, "request.claimed")
        if self.states[request] == "claimed":
            self.move(request, "request.started")
        for text in texts:
            self.move(request, "tokens.generated", text=text)

    def legal(self, request: str) -> list[str]:
        """Event types that may follow."""
        state = self.states.get(request)
        return [name for name, moves in TRANSITIONS.items() if state in moves]

    def move(
        self,
        request: str,
        type: str,
        *,
        text: str = "x",
        thread: str | None = None,
        stream: str | None = None,
        run: str | None = None,
    ) -> Event:
        """Append a legal event of a request."""
        self.states[request] = TRANSITIONS[type][self.states.get(request)]
        if type == "request.claimed":
            self.epochs[request] = self.epochs.get(request, 0) + 1
        batch, epoch = self.batches.get(request, 0), self.epochs.get(request, 0)
        if type == "tokens.generated":
            self.batches[request] = batch + 1
        payload = _payload(request, type, epoch=epoch, batch=batch, text=text)
        return self.add(payload, run=run, thread=thread, stream=stream)


async def write(store: LogStore, events: Sequence[Event]) -> None:
    """Write events to a store, positions included."""
    await store.load(events, [b"salt"] * len(events))


_OF_REQUEST = {
    entry.payload.__name__
    for name, entry in c.CATALOGUE.items()
    if name.startswith("request.") or name == "tokens.generated"
}


def _payload(request: str, type: str, *, epoch: int, batch: int, text: str) -> c.Payload:
    r = {"request": request}
    match type:
        case "request.queued":
            return c.RequestQueued(**r, params=c.SamplingParams(seed=1), priority=batch)
        case "request.claimed":
            return c.RequestClaimed(**r, epoch=epoch, worker="w")
        case "request.started":
            return c.RequestStarted(
                **r, epoch=epoch, model="m", weights="w", prompt_tokens=7, queue_ms=1.5
            )
        case "request.embedded":
            return c.RequestEmbedded(
                **r, epoch=epoch, vector="AAAAPw==", dimensions=1, pooling="mean"
            )
        case "request.preempted":
            return c.RequestPreempted(**r, epoch=epoch, reason="blocks")
        case "request.resumed":
            return c.RequestResumed(**r, epoch=epoch)
        case "request.abandoned":
            return c.RequestAbandoned(**r, epoch=epoch, worker="w", reason="crash")
        case "tokens.generated":
            return c.TokensGenerated(
                **r, epoch=epoch, batch=batch, index=batch, tokens=[batch], text=text, offsets=[0.5]
            )
        case "request.finished":
            return c.RequestFinished(
                **r,
                epoch=epoch,
                reason="stop",
                text=text,
                usage=c.Usage(prompt_tokens=7, completion_tokens=batch),
                timings=c.Timings(queue_ms=1, prefill_ms=2, decode_ms=3),
                batches=batch,
                digest="d",
            )
        case "request.failed":
            return c.RequestFailed(**r, code="error", message=text)
        case "request.cancelled":
            return c.RequestCancelled(**r, text=text if batch % 2 else None)
    raise AssertionError(type)


def answered(log: History) -> None:
    log.ask()
    log.generate("q1", "Par", "is")
    log.move("q1", "request.finished", text="Paris")
    log.add(c.RunCompleted(run="r1"))


def streaming(log: History) -> None:
    log.ask()
    log.generate("q1", "Par")


def failed(log: History) -> None:
    streaming(log)
    log.move("q1", "request.failed")
    log.add(c.RunFailed(run="r1", error=c.ErrorInfo(kind="EngineError", message="no")))


def stopped(log: History) -> None:
    log.ask()
    log.add(c.StepStarted(step="s1", name="search"), run="r1")
    log.add(c.MessageStarted(message="m1"), run="r1")
    log.add(c.MessageDelta(message="m1", text="so f"), run="r1")
    log.generate("q1", "Par")
    log.add(c.RunStopped(run="r1"))
    log.add(c.RequestCancelled(request="q1", text="Par"))
    log.add(c.MessageCompleted(message="m1", content="so far"), run="r1")


def interrupted(log: History) -> None:
    log.ask()
    log.add(c.StepStarted(step="s1", name="search"), run="r1")
    log.add(c.MessageStarted(message="m1"), run="r1")
    log.add(c.MessageDelta(message="m1", text="so f"), run="r1")
    log.generate("q1", "Par")
    log.add(c.RunInterrupted(run="r1", reason="crash"))


def went_on(log: History) -> None:
    interrupted(log)
    log.move("q1", "request.abandoned")
    log.generate("q1", "is")
    log.move("q1", "request.finished", text="Paris")


def preempted(log: History) -> None:
    streaming(log)
    log.move("q1", "request.preempted")
    log.move("q1", "request.resumed")
    log.generate("q1", "is")


def bound_late(log: History) -> None:
    log.ask(bind=False)
    log.generate("q1", "Par")
    log.add(c.MessageStarted(message="a1", request="q1"), run="r1")
    log.generate("q1", "is")
    log.move("q1", "request.finished", text="Paris")
    log.add(c.MessageStarted(message="a2", request="q1"), run="r1")


def never_queued(log: History) -> None:
    log.add(c.RunStarted(run="r1", hook="on_message", node="n"))
    log.add(c.MessageStarted(message="a1", request="q9"), run="r1")
    log.add(c.RunInterrupted(run="r1", reason="crash"))


def edited(log: History) -> None:
    streaming(log)
    log.add(c.MessageEdited(message="a1", content="Mine"))
    log.generate("q1", "is")
    log.move("q1", "request.finished", text="Paris")
    log.add(c.MessageRemoved(message="u1"))
    log.add(c.MessageEdited(message="u1", content="back"))


def repeated(log: History) -> None:
    streaming(log)
    again = log.events[-1]
    log.generate("q1", "is")
    log.raw(again.stream, again.type, again.data, request="q1")


#: Hand-written histories, each with something odd in it.
BY_HAND = (
    answered,
    streaming,
    failed,
    stopped,
    interrupted,
    went_on,
    preempted,
    bound_late,
    never_queued,
    edited,
    repeated,
)


TEXTS = (
    "",
    " ",
    "a",
    "Paris in",
    "ünïcode 漢字 😀",
    "two\nlines",
    'say "no" -- OR *',
    "nul \0 end",
)

#: One step of a drawn history: what, about which thread, subject and relation, with which text.
_step = st.tuples(
    st.integers(0, 39), st.integers(0, 1), st.integers(0, 2), st.integers(0, 2), st.integers(0, 7)
)
Step = tuple[int, int, int, int, int]


def histories(size: int = 60) -> st.SearchStrategy[History]:
    """Histories in which requests move legally, and everything else happens in any order."""
    return st.lists(_step, min_size=1, max_size=size).map(_build)


def _build(steps: list[Step]) -> History:
    log = History()
    for step in steps:
        what, thread, subject, relation, text = step
        name, run = "tu"[thread], (None, "r0", "r1")[relation]
        if what < len(_PAYLOADS):
            request = (None, f"q{thread}", "q2")[relation]
            payload = _PAYLOADS[what](f"{name}{subject}", request, TEXTS[text])
            log.add(payload, run=run, thread=name)
        else:
            _move_request(log, what - len(_PAYLOADS), name, f"q{subject}", TEXTS[text], run)
    return log


def _move_request(
    log: History, what: int, thread: str, request: str, text: str, run: str | None
) -> None:
    # A request stays in its stream: q0 in one thread, q1 in the other, q2 in none.
    thread, stream = {"q0": ("t", None), "q1": ("u", None)}.get(request, ("t", "request/q2"))
    legal = log.legal(request)
    # Endings are rare, so that requests live long enough to be preempted and abandoned.
    onward = [
        name for name in legal if TRANSITIONS[name].get(log.states.get(request)) not in TERMINAL
    ]
    choices = onward * 4 + legal
    if choices:
        log.move(
            request, choices[what % len(choices)], text=text, thread=thread, stream=stream, run=run
        )


_ERROR = c.ErrorInfo(kind="ValueError", message="no")

#: Payloads by (subject, request, text).
_PAYLOADS: list[Callable[[str, str | None, str], c.Payload]] = [
    lambda s, r, t: c.ThreadCreated(owner="local", metadata={"a": 1}),
    lambda s, r, t: c.ThreadRenamed(title=t),
    lambda s, r, t: c.ThreadSettingsChanged(settings={"k": t}),
    lambda s, r, t: c.ThreadMetadataChanged(metadata={"k": t}),
    lambda s, r, t: c.ThreadDeleted(),
    lambda s, r, t: c.SessionChanged(values={t: 1}, removed=["", "a"]),
    lambda s, r, t: c.MessagePosted(message=s, role="user", content=t),
    lambda s, r, t: c.MessageStarted(message=s, request=r),
    lambda s, r, t: c.MessageStarted(message=s),
    lambda s, r, t: c.MessageDelta(message=s, text=t),
    lambda s, r, t: c.MessageDelta(message=s, text=t),
    lambda s, r, t: c.MessageCompleted(message=s, content=t or None),
    lambda s, r, t: c.MessageEdited(message=s, content=t),
    lambda s, r, t: c.MessageRemoved(message=s),
    lambda s, r, t: c.MessageFeedback(message=s, value=len(t) % 3 - 1, comment=t),
    lambda s, r, t: c.RunStarted(run=f"r{s[1]}", hook="on_message", node="n", resumable=t == ""),
    lambda s, r, t: c.RunStarted(run=f"r{s[1]}", hook="on_message", node="n"),
    lambda s, r, t: c.RunCompleted(run=f"r{s[1]}"),
    lambda s, r, t: c.RunFailed(run=f"r{s[1]}", error=_ERROR),
    lambda s, r, t: c.RunStopped(run=f"r{s[1]}"),
    lambda s, r, t: c.RunInterrupted(run=f"r{s[1]}", reason="crash"),
    lambda s, r, t: c.RunResumed(run=f"r{s[1]}", node="n2"),
    lambda s, r, t: c.StepStarted(step=s, name="tool", request=r, input={"q": t}),
    lambda s, r, t: c.StepDelta(step=s, text=t),
    lambda s, r, t: c.StepCompleted(step=s, output=t or None),
    lambda s, r, t: c.StepFailed(step=s, error=_ERROR),
]

"""A logged generation beside another execution of it: pure."""

from __future__ import annotations

import struct
from base64 import b64encode

import msgspec
import pytest

from app.engine.again import Logged, add, compare, gather
from app.engine.flow import Outcome
from app.engine.frames import Ready
from app.engine.sampling import TokenLogprobs
from app.events import catalogue as c
from app.events.codec import new
from app.events.envelope import Event

READY = Ready(
    model="m",
    weights="w" * 64,
    architecture="llama",
    device="cpu",
    dtype="float32",
    threads=1,
    context=100,
    blocks=1,
    block_size=16,
    parameters=1,
    load_time=0.0,
    eos=[2],
    deterministic=True,
    cpu="AVX2",
    torch="2",
)
STARTED = c.RequestStarted(
    request="q",
    epoch=1,
    model="m",
    weights="w" * 64,
    prompt_tokens=2,
    dtype="float32",
    deterministic=True,
    threads=1,
    cpu="AVX2",
    torch="2",
)


def logged(tokens: list[int], **more: object) -> Logged:
    queued = c.RequestQueued(request="q", params=c.SamplingParams(seed=1), prompt=[1, 2])
    given = {"started": STARTED, "reason": "length", **more}
    return Logged(queued=queued, tokens=tokens, **given)  # type: ignore[arg-type]


def outcome(tokens: list[int], **more: object) -> Outcome:
    scores = [TokenLogprobs(logprob=-0.5, top=[(t, -0.5), (9, -1.5)]) for t in tokens]
    return Outcome(request="q", tokens=tokens, logprobs=scores, reason="stop", **more)  # type: ignore[arg-type]


def test_the_same() -> None:
    found = compare(logged([5, 6]), outcome([5, 6]), READY)
    assert (found.verdict, found.equal, found.logprobs, found.notes) == ("same", 2, None, [])


def test_where_they_part() -> None:
    found = compare(logged([5, 9, 7]), outcome([5, 6, 7]), READY)
    assert (found.verdict, found.tokens, found.equal) == ("different", 3, 1)
    parted = found.difference
    assert parted is not None
    assert (parted.index, parted.logged, parted.again) == (1, 9, 6)
    assert (parted.logged_logprob, parted.again_logprob) == (-1.5, -0.5)


@pytest.mark.parametrize(
    ("old", "new_", "parted"),
    [([5], [5, 6], (1, None, 6)), ([5, 6], [5], (1, 6, None)), ([5], [0], (0, 5, 0))],
)
def test_one_ends_before_the_other(
    old: list[int], new_: list[int], parted: tuple[int, int | None, int | None]
) -> None:
    found = compare(logged(old), outcome(new_), READY).difference
    assert found is not None
    assert (found.index, found.logged, found.again) == parted


def test_what_was_cut_short_is_compared_as_far_as_it_came() -> None:
    assert compare(logged([5], reason=None), outcome([5, 6]), READY).verdict == "same"
    assert compare(logged([5, 6], reason=None), outcome([5]), READY).verdict == "different"
    assert add(logged([5, 6], reason=None)).params.max_tokens == 2
    assert add(logged([5, 6])).params.max_tokens is None


def test_forms_are_asked_for_as_they_were() -> None:
    """With log probabilities they are drawn token by token, without them not."""
    assert add(logged([5])).params.logprobs == 1
    params = c.SamplingParams(seed=1, structured=c.Structured(regex="a+"))
    for given in (params, msgspec.structs.replace(params, logprobs=0)):
        queued = c.RequestQueued(request="q", params=given, prompt=[1])
        assert add(Logged(queued=queued, tokens=[5], reason="stop")).params == given


def test_log_probabilities_are_held_bit_for_bit() -> None:
    one, other = (TokenLogprobs(logprob=x) for x in (-0.5, -0.5000001))
    assert compare(logged([5], logprobs=[one]), outcome([5]), READY).logprobs == 1
    found = compare(logged([5], logprobs=[other]), outcome([5]), READY)
    assert (found.verdict, found.logprobs) == ("different", 0)
    assert found.message == "a log probability is another"


def test_vectors() -> None:
    old, near = struct.pack("<2f", 0.6, 0.8), struct.pack("<2f", 0.6, 0.75)
    was = logged([], vector=b64encode(old).decode())
    assert compare(was, outcome([], embedding=old), READY).verdict == "same"
    message = compare(was, outcome([], embedding=near), READY).message or ""
    assert "differ by up to 5.0e-02" in message
    assert "has 1 numbers" in (compare(was, outcome([], embedding=old[:4]), READY).message or "")


def test_what_was_otherwise_is_named() -> None:
    ready = msgspec.structs.replace(READY, weights="x" * 64, dtype="bfloat16")
    notes = " ".join(compare(logged([5]), outcome([5]), ready).notes)
    assert "wwwwwwwwwwww" in notes
    assert "xxxxxxxxxxxx" in notes
    assert "float32 then, bfloat16 now" in notes
    assert "deterministic" not in notes
    ready = msgspec.structs.replace(READY, threads=2, cpu="AVX512", torch="3", deterministic=False)
    notes = " ".join(compare(logged([5]), outcome([5]), ready).notes)
    for word in ("threads: 1 then, 2 now", "AVX2 then, AVX512 now", "torch: 2 then", "was off now"):
        assert word in notes


def test_what_cannot_be_run() -> None:
    assert compare(logged([5], redacted=True), None, READY).verdict == "redacted"
    assert compare(logged([]), None, READY).verdict == "empty"
    failed = compare(logged([5]), Outcome(request="q", error="no room"), READY)
    assert (failed.verdict, failed.message) == ("failed", "no room")


def test_gathered_over_claims_and_other_events() -> None:
    payloads: list[c.Payload] = [
        c.RunStarted(run="r", hook="on_message", node="n", message="m"),
        c.RequestQueued(request="q", params=c.SamplingParams(seed=1), prompt=[1]),
        STARTED,
        c.TokensGenerated(request="q", epoch=1, batch=0, index=0, tokens=[5], text="a"),
        c.RequestAbandoned(request="q", epoch=1, worker="w", reason="died"),
        msgspec.structs.replace(STARTED, epoch=2, dtype="bfloat16"),
        c.TokensGenerated(request="q", epoch=2, batch=1, index=1, tokens=[6, 7], text="b"),
        c.RequestCancelled(request="q", text="ab"),
    ]
    events = []
    for seq, payload in enumerate(payloads, 1):
        event = new(payload, request=getattr(payload, "request", None))
        events.append(
            Event(
                seq=seq,
                stream="request/q",
                version=seq,
                type=event.type,
                schema=event.schema,
                time=0,
                actor="system",
                request=event.request,
                run=None,
                cause=None,
                data=event.data,
            )
        )
    [found] = gather(events)
    assert (found.tokens, found.reason, found.redacted) == ([5, 6, 7], None, False)
    assert found.started == STARTED
    assert gather(events, frozenset({4}))[0].redacted

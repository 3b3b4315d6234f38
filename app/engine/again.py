"""A logged generation, executed once more: what it was, and whether it comes out the same."""

from __future__ import annotations

import struct
from base64 import b64decode
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from app import __version__ as VERSION
from app.engine.flow import Outcome
from app.engine.frames import Add, Ready, asked
from app.engine.recovery import seeded
from app.engine.sampling import TokenLogprobs
from app.events import codec
from app.events.catalogue import (
    RequestCancelled,
    RequestEmbedded,
    RequestFailed,
    RequestFinished,
    RequestQueued,
    RequestStarted,
    TokensGenerated,
)
from app.events.envelope import Event

__all__ = ["Comparison", "Difference", "Logged", "add", "compare", "gather"]

Verdict = Literal["same", "different", "failed", "redacted", "empty"]


class Logged(msgspec.Struct, kw_only=True):
    """What the log has of a request.

    Attributes:
        queued: What was asked.
        started: On what it ran; of several claims the first.
        tokens: The committed output.
        logprobs: One for each token, if they were asked for.
        vector: What was read into a vector, as base64; None if nothing was.
        reason: ``stop`` or ``length``; None if it did not come to its own end.
        redacted: Its content was erased.

    """

    queued: RequestQueued
    started: RequestStarted | None = None
    tokens: list[int] = []
    logprobs: list[TokenLogprobs] = []
    vector: str | None = None
    reason: str | None = None
    redacted: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing came of it that could be compared."""
        return not self.tokens and self.vector is None


class Difference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where two outputs part.

    Attributes:
        index: Position in the output.
        logged: The token in the log; None: it had ended.
        again: The token now; None: it has ended.
        logged_logprob: Log probability, now, of the logged token; None if it is not among the
            most probable.
        again_logprob: That of the token now.

    """

    index: int
    logged: int | None
    again: int | None
    logged_logprob: float | None = None
    again_logprob: float | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A logged output beside that of another execution.

    Attributes:
        request: Id of the request.
        verdict: ``same``; ``different``; ``failed`` (it could not be executed); ``redacted`` or
            ``empty`` (there is nothing to compare).
        tokens: How many tokens the log has.
        equal: How many of them came again, up to the first that did not.
        logprobs: How many log probabilities are the same bit for bit; None if none are logged.
        difference: Where they part.
        message: Why it failed, or what differs that is no token.
        notes: What was not as it was when it was logged: reasons to expect a difference.

    """

    request: str
    verdict: Verdict
    tokens: int = 0
    equal: int = 0
    logprobs: int | None = None
    difference: Difference | None = None
    message: str | None = None
    notes: list[str] = []


def gather(events: Iterable[Event], erased: frozenset[int] = frozenset()) -> list[Logged]:
    """Collect the requests of a stream, in the order they were queued.

    Args:
        events: Events of one stream, in order; those about other things are passed over.
        erased: Positions (``seq``) in the log whose content was erased.

    Raises:
        PayloadError: A payload is malformed.

    """
    found: dict[str, Logged] = {}
    for event in events:
        if not event.type.startswith(("request.", "tokens.")):
            continue
        payload: Any = codec.decode(event)
        if isinstance(payload, RequestQueued):
            found[payload.request] = Logged(queued=payload)
        logged = found.get(event.request or "")
        if logged is None:
            continue
        logged.redacted = logged.redacted or event.seq in erased
        match payload:
            case RequestStarted():
                logged.started = logged.started or payload
            case TokensGenerated():
                logged.tokens += payload.tokens
                logged.logprobs += payload.logprobs
            case RequestEmbedded(vector=vector):
                logged.vector = vector
            case RequestFinished(reason=reason):
                logged.reason = reason
            case RequestCancelled() | RequestFailed():
                logged.reason = None
    return list(found.values())


def add(logged: Logged) -> Add:
    """The frame that asks for it again, from its first token on.

    What was cut short is asked for as far as it came. The most probable tokens are asked for too,
    so that a difference can be judged; that changes no token. Not so with a form: tokens that it
    leaves no choice are not drawn unless their log probabilities are wanted.
    """
    queued = logged.queued
    params = seeded(queued)
    top = max(params.logprobs or 0, 1) if params.structured is None else params.logprobs
    if logged.reason is None and logged.tokens:
        params = msgspec.structs.replace(params, max_tokens=len(logged.tokens))
    return asked(queued, queued.request, msgspec.structs.replace(params, logprobs=top))


def compare(logged: Logged, again: Outcome | None, ready: Ready) -> Comparison:
    """Hold what came out now against the log.

    Args:
        logged: What the log has.
        again: What came out; None if it was not executed.
        ready: On what it was executed.

    """
    request, count = logged.queued.request, len(logged.tokens)
    if again is None:
        verdict: Verdict = "redacted" if logged.redacted else "empty"
        return Comparison(request=request, verdict=verdict, tokens=count)
    notes = _notes(logged, ready)
    if again.error is not None:
        return Comparison(
            request=request, verdict="failed", tokens=count, message=again.error, notes=notes
        )
    if logged.vector is not None:
        apart = _apart(b64decode(logged.vector), again.embedding)
        return Comparison(
            request=request,
            verdict="different" if apart else "same",
            message=apart,
            notes=notes,
        )
    return _compared(logged, again, notes)


def _compared(logged: Logged, again: Outcome, notes: list[str]) -> Comparison:
    request, count = logged.queued.request, len(logged.tokens)
    difference = _difference(logged, again)
    equal = count if difference is None else min(difference.index, count)
    scored = None
    if logged.logprobs:
        pairs = zip(logged.logprobs, again.logprobs, strict=False)
        scored = sum(a.logprob == b.logprob for a, b in pairs)
    same = difference is None and scored in (None, len(logged.logprobs))
    return Comparison(
        request=request,
        verdict="same" if same else "different",
        tokens=count,
        equal=equal,
        logprobs=scored,
        difference=difference,
        message="a log probability is another" if not same and difference is None else None,
        notes=notes,
    )


def _apart(old: bytes, new: bytes) -> str | None:
    """How two vectors of little-endian 32-bit floats differ, or None."""
    if old == new:
        return None
    if len(old) != len(new):
        return f"the vector has {len(new) // 4} numbers; the one in the log has {len(old) // 4}"
    pairs = zip(struct.iter_unpack("<f", old), struct.iter_unpack("<f", new), strict=True)
    most = max(abs(a - b) for (a,), (b,) in pairs)
    return f"the vector is another: its numbers differ by up to {most:.1e}"


def _difference(logged: Logged, again: Outcome) -> Difference | None:
    """Where they part. What was cut short is compared as far as it came."""
    old, new = logged.tokens, again.tokens
    shared = min(len(old), len(new))
    index = next((i for i in range(shared) if old[i] != new[i]), shared)
    if index == len(old) and (index == len(new) or logged.reason is None):
        return None
    before = old[index] if index < len(old) else None
    if index == len(new):
        return Difference(index=index, logged=before, again=None)
    scores = again.logprobs[index] if index < len(again.logprobs) else None
    return Difference(
        index=index,
        logged=before,
        again=new[index],
        logged_logprob=_score(scores, before),
        again_logprob=None if scores is None else scores.logprob,
    )


def _score(scores: TokenLogprobs | None, token: int | None) -> float | None:
    return None if scores is None or token is None else dict(scores.top).get(token)


def _notes(logged: Logged, ready: Ready) -> list[str]:
    started = logged.started
    if started is None:
        return []
    notes = []
    if started.weights != ready.weights:
        notes.append(
            f"other weights: {started.model} ({started.weights[:12]}) then, "
            f"{ready.model} ({ready.weights[:12]}) now"
        )
    if started.dtype is not None and started.dtype != ready.dtype:
        notes.append(f"other arithmetic: {started.dtype} then, {ready.dtype} now")
    if started.version is not None and started.version != VERSION:
        notes.append(f"another version of Everlog: {started.version} then, {VERSION} now")
    for what, then, now in (
        ("number of threads", started.threads, ready.threads),
        ("set of CPU instructions", started.cpu, ready.cpu),
        ("version of torch", started.torch, ready.torch),
    ):
        if then is not None and then != now:
            notes.append(f"another {what}: {then} then, {now} now")
    if not (started.deterministic and ready.deterministic):
        when = "now" if started.deterministic else "then"
        notes.append(f"engine.deterministic was off {when}: what ran beside it has a part in sums")
    return notes

"""From the core's frames to events: `Answer` makes them, `Flusher` commits them.

The first token of a request is written at once. Afterwards what has arrived is written when the
last commit is done, but not more often than the floor, unless an event is full. Requests that are
due at the same time share one commit; each has at most one append in flight.
"""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from hashlib import sha256

from app import __version__
from app.config import StreamConfig
from app.engine.frames import Output, Ready, Started
from app.engine.recovery import History
from app.events import codec
from app.events.catalogue import (
    Payload,
    RequestEmbedded,
    RequestFailed,
    RequestFinished,
    RequestPreempted,
    RequestResumed,
    RequestStarted,
    Timings,
    TokensGenerated,
    Usage,
)
from app.events.envelope import NewEvent
from app.events.store import Append, Appended, Claimed, EventStore, Fence, Outcome

__all__ = ["Answer", "Flusher"]


class Answer:
    """One claim of a request: turns what the core says about it into events, in order.

    Attributes:
        key: Its name in the core; every claim has its own.
        started: Whether it was in a batch under this claim.
        output: Output tokens so far, those of earlier claims included.

    Args:
        claimed: The claim.
        past: What earlier claims left.
        worker: Whose claim it is.
        model: What computes it.
        max_tokens: Most tokens in an event.
        waited: Why it was not claimed at once, in a word of ``request.started``.

    """

    def __init__(
        self,
        claimed: Claimed,
        past: History,
        *,
        worker: str,
        model: Ready,
        max_tokens: int,
        waited: str = "",
    ) -> None:
        self.request = claimed.request
        self.stream = claimed.stream
        self.epoch = claimed.epoch
        self.key = f"{claimed.request}/{claimed.epoch}"
        self.fence = Fence(claimed.request, claimed.epoch)
        self.past = past
        self.started = False
        self.output = len(past.tokens)
        self._event = partial(
            codec.new,
            actor=f"engine:{worker}",
            request=claimed.request,
            run=claimed.queued.run,
            cause=str(claimed.queued.seq),
        )
        self._model = model
        self._max_tokens = max_tokens
        self._waited = [waited] if waited else []
        self._usage = Usage()
        self._drafts = (0, 0)  # tokens drafted under this claim, and those that were right
        self._texts = list(past.texts)
        self._batch = len(past.texts)
        self._committing = self.output  # tokens packed into events so far
        self._pieces: list[tuple[Output, float]] = []
        self._waiting = 0  # tokens in pieces
        self._payloads: list[Payload] = []
        self._flushed = 0.0  # when events were last taken; 0: no tokens were yet
        self._times = [0.0, 0.0, 0.0]  # started, first token, last token: seconds since the epoch

    # -------------------------------------------------------------------- what the core said

    def start(self, frame: Started) -> None:
        """It is in the batch for the first time under this claim."""
        self.started = True
        self._times[0] = frame.time
        self._usage = Usage(prompt_tokens=frame.prompt_tokens, cached_tokens=frame.cached_tokens)
        self._payloads.append(
            RequestStarted(
                request=self.request,
                epoch=self.epoch,
                model=self._model.model,
                weights=self._model.weights,
                prompt_tokens=frame.prompt_tokens,
                cached_tokens=frame.cached_tokens,
                resumed_tokens=len(self.past.tokens),
                queue_ms=self._queue_ms(),
                dtype=self._model.dtype,
                version=__version__,
                deterministic=self._model.deterministic,
                threads=self._model.threads,
                cpu=self._model.cpu or None,
                torch=self._model.torch or None,
                waited_for=[*self._waited, *frame.waited_for],
            )
        )

    def preempt(self, reason: str) -> None:
        """It lost its blocks."""
        self._pack()
        self._payloads.append(
            RequestPreempted(request=self.request, epoch=self.epoch, reason=reason)
        )

    def resume(self) -> None:
        """It is in the batch again."""
        self._payloads.append(RequestResumed(request=self.request, epoch=self.epoch))

    def add(self, output: Output, now: float) -> None:
        """It got tokens in a step that ended at ``now`` (seconds since the epoch)."""
        if output.embedding is not None:
            self._embedded(output.embedding, now)
            return
        self._pieces.append((output, now))
        self._waiting += len(output.tokens)
        self.output += len(output.tokens)
        drafted, right = output.drafts
        self._drafts = (self._drafts[0] + drafted, self._drafts[1] + right)
        if not self._times[1]:
            self._times[1] = now
        self._times[2] = now
        if output.reason is not None:
            self._finish(output.reason)

    def _embedded(self, vector: bytes, now: float) -> None:
        self._times[1] = self._times[2] = now
        self._payloads.append(
            RequestEmbedded(
                request=self.request,
                epoch=self.epoch,
                vector=b64encode(vector).decode(),
                dimensions=len(vector) // 4,
                pooling=self._model.pooling,
            )
        )
        self._finish("stop")

    def fail(self, code: str, message: str) -> None:
        """It ended badly."""
        self._pack()
        self._payloads.append(
            RequestFailed(
                request=self.request,
                code=code,
                message=message,
                epoch=self.epoch,
                usage=self._counted() if self.started else None,
            )
        )

    # ------------------------------------------------------------------------- to the log

    def due(self, floor: float) -> float:
        """When its events should be written (monotonic seconds); 0 is at once."""
        if self._payloads or self._waiting >= self._max_tokens:
            return 0.0
        return self._flushed + floor if self._flushed else 0.0

    def take(self, now: float) -> Append:
        """Hand over everything that was not written yet; there is something.

        Args:
            now: Monotonic seconds.

        """
        if self._pieces:
            self._flushed = now
            self._pack()
        payloads, self._payloads = self._payloads, []
        events: list[NewEvent] = [self._event(payload) for payload in payloads]
        return Append(stream=self.stream, events=events, fence=self.fence)

    def _pack(self) -> None:
        """Make ``tokens.generated`` of the pieces, none of which is cut."""
        begin, size = 0, 0
        for end, (output, _) in enumerate(self._pieces, 1):
            size += len(output.tokens)
            if size >= self._max_tokens or end == len(self._pieces):
                self._emit(self._pieces[begin:end])
                begin, size = end, 0
        self._pieces = []
        self._waiting = 0

    def _emit(self, pieces: list[tuple[Output, float]]) -> None:
        first = self._times[1]
        tokens = [token for output, _ in pieces for token in output.tokens]
        text = "".join([output.text for output, _ in pieces])
        self._payloads.append(
            TokensGenerated(
                request=self.request,
                epoch=self.epoch,
                batch=self._batch,
                index=self._committing,
                tokens=tokens,
                text=text,
                offsets=[round((now - first) * 1e3, 1) for o, now in pieces for _ in o.tokens],
                logprobs=[one for output, _ in pieces for one in output.logprobs or ()],
                prompt_logprobs=[one for output, _ in pieces for one in output.prompt or ()],
            )
        )
        self._texts.append(text)
        self._batch += 1
        self._committing += len(tokens)

    def _finish(self, reason: str) -> None:
        self._pack()
        started, first, last = self._times
        text = "".join(self._texts)
        self._payloads.append(
            RequestFinished(
                request=self.request,
                epoch=self.epoch,
                reason=reason,
                text=text,
                usage=self._counted(),
                timings=Timings(
                    queue_ms=self._queue_ms(),
                    prefill_ms=round((first - started) * 1e3, 1),
                    decode_ms=round((last - first) * 1e3 + self.past.decode_ms, 1),
                ),
                batches=self._batch,
                digest=sha256(text.encode()).hexdigest(),
            )
        )

    def _counted(self) -> Usage:
        return Usage(
            prompt_tokens=self._usage.prompt_tokens,
            completion_tokens=self.output,
            cached_tokens=self._usage.cached_tokens,
            draft_tokens=self._drafts[0],
            accepted_tokens=self._drafts[1],
        )

    def _queue_ms(self) -> float:
        return round(max(0.0, self._times[0] * 1e3 - self.past.waiting_since / 1e6), 1)


class Flusher:
    """Commits what answers have to say.

    Args:
        store: The log.
        config: Floor and ceiling.
        refused: Called for an answer whose events the store did not take, with the outcome.

    """

    def __init__(
        self, store: EventStore, config: StreamConfig, refused: Callable[[Answer, Outcome], None]
    ) -> None:
        self._store = store
        self._floor = config.floor_ms / 1e3
        self._refused = refused
        self._dirty: dict[str, Answer] = {}
        self._bell = asyncio.Event()
        self._one = asyncio.Lock()

    def touch(self, answer: Answer) -> None:
        """It has something to say."""
        self._dirty[answer.key] = answer
        self._bell.set()

    def discard(self, answer: Answer) -> None:
        """Nothing more of it may be written."""
        self._dirty.pop(answer.key, None)

    def clear(self) -> None:
        """Nothing that waits may be written."""
        self._dirty.clear()

    async def run(self) -> None:
        """Write when it is due, until cancelled.

        Raises:
            StoreError: The log cannot be written; what was to be written is lost.

        """
        while True:
            self._bell.clear()
            due = min((answer.due(self._floor) for answer in self._dirty.values()), default=None)
            wait = None if due is None else due - time.monotonic()
            if wait is not None and wait <= 0:
                await self.flush()
                continue
            try:
                async with asyncio.timeout(wait):
                    await self._bell.wait()
            except TimeoutError:
                continue

    async def flush(self, *, everything: bool = False) -> None:
        """Write what is due, or all there is, in one commit.

        Raises:
            StoreError: As for `run`.

        """
        async with self._one:
            now = time.monotonic()
            ready = [a for a in self._dirty.values() if everything or a.due(self._floor) <= now]
            if not ready:
                return
            for answer in ready:
                del self._dirty[answer.key]
            outcomes = await self._store.append_many([answer.take(now) for answer in ready])
        for answer, outcome in zip(ready, outcomes, strict=True):
            if not isinstance(outcome, Appended):
                self._refused(answer, outcome)

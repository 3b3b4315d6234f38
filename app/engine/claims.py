"""The requests that this host holds: between its claims in the log and their names in the core."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from app.config import StreamConfig
from app.engine.channel import packed
from app.engine.flush import Answer, Flusher
from app.engine.frames import (
    Add,
    Cancel,
    Failed,
    FromCore,
    Preempted,
    Resumed,
    Started,
    Step,
    asked,
)
from app.engine.recovery import History, Strikes, history, queued, seeded
from app.engine.sampling import validate
from app.engine.supervisor import CoreProcess
from app.errors import InputError
from app.events import codec
from app.events.catalogue import RequestQueued
from app.events.store import Claimed, EventStore, Fence, Outcome

__all__ = ["Claims"]

log = logging.getLogger(__name__)


class Claims:
    """Sends claimed requests to the core, and what it says about them to the log.

    Attributes:
        core: Where requests are computed; None while there is none.
        flusher: Writes to the log.

    Args:
        store: The log.
        stream: How tokens are batched into events.
        worker: Name of the worker.
        freed: Called when a request is held no longer.
        private: Tenants share no computed blocks.

    """

    def __init__(
        self,
        store: EventStore,
        stream: StreamConfig,
        *,
        worker: str,
        freed: Callable[[], None],
        private: bool = False,
    ) -> None:
        self.core: CoreProcess | None = None
        self.flusher = Flusher(store, stream, self._refused)
        self._store = store
        self._worker = worker
        self._max_tokens = stream.max_tokens
        self._freed = freed
        self._private = private
        self._strikes = Strikes()
        self._answers: dict[str, Answer] = {}  # by key: claimed and not ended
        self._by_request: dict[str, Answer] = {}
        self._parked: dict[str, bytearray] = {}  # by key: frames not yet sent to the core
        self._priorities: dict[str, int] = {}  # by key

    def __len__(self) -> int:
        """How many requests are held."""
        return len(self._answers)

    def holds(self, request: str) -> bool:
        """Whether a request is held."""
        return request in self._by_request

    def fences(self) -> list[Fence]:
        """The claims held."""
        return [answer.fence for answer in self._answers.values()]

    @property
    def lowest(self) -> int | None:
        """The lowest priority of what is held."""
        return min(self._priorities.values(), default=None)

    async def take(self, claim: Claimed, *, waited: str = "") -> None:
        """Have a claimed request computed, or failed if it cannot be.

        Args:
            claim: The request.
            waited: Why it waited in the log: ``worker``, ``room``, or nothing.

        """
        core = self.core
        if core is None:
            return  # the crash gives it back
        began = partial(
            Answer,
            claim,
            worker=self._worker,
            model=core.ready,
            max_tokens=self._max_tokens,
            waited=waited,
        )
        answer = began(History(waiting_since=claim.queued.time))
        try:
            payload = queued(claim)
            validate(payload.params, form=False)  # that was done before it was queued
            answer = began(await history(self._store, claim))
            frame = packed(_add(answer, claim, payload, private=self._private))
        except InputError as error:
            self._fail(answer, "invalid", str(error))
        except (codec.PayloadError, ValueError) as error:
            self._fail(answer, "error", f"it cannot be read back from the log: {error}")
        else:
            self._answers[answer.key] = self._by_request[answer.request] = answer
            self._priorities[answer.key] = payload.priority
            self._parked[answer.key] = frame
            self._send_parked()

    def handle(self, frame: FromCore) -> None:
        """Take in what the core says."""
        if isinstance(frame, Step):
            self._stepped(frame)
            return
        answer = self._answers.get(getattr(frame, "request", ""))
        if answer is None:
            return
        if isinstance(frame, Started):
            answer.start(frame)
        elif isinstance(frame, Preempted):
            answer.preempt(frame.reason)
        elif isinstance(frame, Resumed):
            answer.resume()
        elif isinstance(frame, Failed):
            answer.fail(frame.code, frame.message)
            self._ended(answer)
        self.flusher.touch(answer)

    def lost(self, request: str, *, epoch: int | None = None) -> None:
        """A request is ours no longer (if ``epoch`` is given: under that claim)."""
        answer = self._by_request.get(request)
        if answer is not None and epoch in (None, answer.epoch):
            self._drop(answer)

    def lost_all(self) -> None:
        """Nothing is ours any longer; what was not written is forgotten."""
        for answer in list(self._answers.values()):
            self._drop(answer)
        self.flusher.clear()

    def give_up(self) -> None:
        """Compute nothing any longer; what was produced may still be written."""
        for answer in list(self._answers.values()):
            self._release(answer, cancel=True)

    def crashed(self, reason: str) -> list[str]:
        """The core is gone; returns the requests that were lost with it.

        Those that it crashed on time and again fail; that is written with the next flush.
        """
        self.core = None
        answers = list(self._answers.values())
        self._strikes.crashed(answers)
        for answer in answers:
            if self._strikes.poison(answer.request):
                often = f"the engine crashed {Strikes.POISON} times on it: {reason}"
                self._fail(answer, "error", often)
                self._strikes.forget(answer.request)
            self._release(answer)
        return [answer.request for answer in answers]

    def _fail(self, answer: Answer, code: str, message: str) -> None:
        answer.fail(code, message)
        self.flusher.touch(answer)

    def _stepped(self, step: Step) -> None:
        answers, touch, now = self._answers, self.flusher.touch, step.time
        for output in step.outputs:
            answer = answers.get(output.request)
            if answer is None:
                continue
            answer.add(output, now)
            touch(answer)
            if output.reason is not None:
                self._ended(answer)

    def _send_parked(self) -> None:
        """Send what may be computed now: a suspect of crashes alone, all others together."""
        core = self.core
        if core is None:
            return
        for key in list(self._parked):
            others = len(self._answers) - len(self._parked)
            alone = self._strikes.suspect(self._answers[key].request)
            if others and (alone or self._suspect_runs()):
                return  # nobody overtakes it, or it would wait for ever
            core.write(self._parked.pop(key))

    def _suspect_runs(self) -> bool:
        return any(
            self._strikes.suspect(answer.request)
            for key, answer in self._answers.items()
            if key not in self._parked
        )

    def _refused(self, answer: Answer, outcome: Outcome) -> None:
        log.info("request %s is no longer ours: %s", answer.request, outcome)
        self._drop(answer)

    def _ended(self, answer: Answer) -> None:
        self._strikes.forget(answer.request)
        self._release(answer)

    def _drop(self, answer: Answer) -> None:
        """Write nothing more for a claim, and stop computing it."""
        self.flusher.discard(answer)
        if answer.key in self._answers:
            self._release(answer, cancel=True)

    def _release(self, answer: Answer, *, cancel: bool = False) -> None:
        """Take no more frames for a claim."""
        del self._answers[answer.key], self._priorities[answer.key]
        if self._by_request.get(answer.request) is answer:
            del self._by_request[answer.request]
        parked = self._parked.pop(answer.key, None)
        if cancel and parked is None and self.core is not None:
            self.core.send(Cancel(request=answer.key))
        if self._parked:
            self._send_parked()
        self._freed()


def _add(answer: Answer, claim: Claimed, payload: RequestQueued, *, private: bool) -> Add:
    tenant, salt = payload.tenant or claim.queued.actor, payload.salt
    if private:  # the length keeps one tenant's own salts apart from another's name
        salt = f"{len(tenant)}:{tenant}{salt or ''}"
    return asked(
        payload,
        answer.key,
        seeded(payload),
        output=answer.past.tokens,
        priority=payload.priority,
        queued=claim.queued.time / 1e9,
        deadline=None if payload.deadline is None else payload.deadline / 1e9,
        salt=salt,
        tenant=tenant,
    )

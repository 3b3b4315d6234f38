"""Many requests through a core of one's own: as many under way as make full batches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

import msgspec

from app.engine.child import Child
from app.engine.frames import Add, Cancel, Failed, FromCore, Output, Started, Step
from app.engine.sampling import TokenLogprobs
from app.events.catalogue import Usage

__all__ = ["Outcome", "complete"]


class Outcome(msgspec.Struct, kw_only=True):
    """What became of a request.

    Attributes:
        request: Its name.
        text: The whole answer.
        tokens: Its token ids.
        reason: ``stop``, ``length``, or ``error``.
        usage: What it took.
        logprobs: One for each token, if they were asked for.
        prompt: One for each token of the prompt, if they were asked for.
        embedding: The vector that was asked for instead, as little-endian 32-bit floats.
        error: Why it failed; ``code`` is that of ``request.failed``.

    """

    request: str
    text: str = ""
    tokens: list[int] = []
    reason: str = ""
    usage: Usage = Usage()
    logprobs: list[TokenLogprobs] = []
    prompt: list[TokenLogprobs | None] = []
    embedding: bytes = b""
    code: str | None = None
    error: str | None = None

    def add(self, output: Output) -> None:
        """Take in what a step brought."""
        self.text += output.text
        self.tokens += output.tokens
        self.logprobs += output.logprobs or ()
        self.prompt += output.prompt or ()
        self.embedding += output.embedding or b""
        if output.reason is not None:
            self.reason = output.reason
            self.usage = msgspec.structs.replace(self.usage, completion_tokens=len(self.tokens))


def complete(
    child: Child,
    requests: Iterable[Add],
    *,
    window: int,
    progress: Callable[[int], object] | None = None,
) -> Generator[Outcome, None, None]:
    """Run requests, and yield what becomes of each when it ends, in no order.

    Closing the generator cancels what is under way; the core can be used again.

    Args:
        child: The core.
        requests: Taken when there is room for them.
        window: Most requests at the core at once: more than fit a batch, so that none waits.
        progress: Called with a number of tokens whenever there are new ones.

    Raises:
        CoreDied: The core ended.

    """
    waiting = iter(requests)
    running: dict[str, Outcome] = {}
    more = True
    try:
        while True:
            while more and len(running) < window:
                add = next(waiting, None)
                more = add is not None
                if add is not None:
                    running[add.request] = Outcome(request=add.request)
                    child.send([add])
            if not running:
                return
            for frame in child.receive():
                for outcome in _take(running, frame, progress):
                    yield running.pop(outcome.request)
    finally:
        if running and not child.closed:
            child.send([Cancel(request=request) for request in running])
            child.flush()


def _take(
    running: dict[str, Outcome], frame: FromCore, progress: Callable[[int], object] | None
) -> list[Outcome]:
    """Take in a frame; returns the requests that ended with it."""
    if isinstance(frame, Step):
        ended, count = [], 0
        for output in frame.outputs:
            outcome = running.get(output.request)
            if outcome is None:  # cancelled before
                continue
            outcome.add(output)
            count += len(output.tokens)
            if outcome.reason:
                ended.append(outcome)
        if progress is not None:
            progress(count)
        return ended
    if isinstance(frame, Started | Failed) and (outcome := running.get(frame.request)):
        if isinstance(frame, Started):
            outcome.usage = Usage(
                prompt_tokens=frame.prompt_tokens, cached_tokens=frame.cached_tokens
            )
            return []
        outcome.reason, outcome.code, outcome.error = "error", frame.code, frame.message
        return [outcome]
    return []

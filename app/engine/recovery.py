"""What a host must know to go on: the committed output of a request, and who crashed the core."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Protocol

import msgspec

from app.events import codec
from app.events.catalogue import RequestQueued, SamplingParams, TokensGenerated
from app.events.store import Claimed, EventStore

__all__ = ["History", "Strikes", "history", "queued", "seeded"]


class History(msgspec.Struct, kw_only=True):
    """What earlier claims of a request committed.

    Attributes:
        tokens: Output token ids.
        texts: Text of each ``tokens.generated``.
        decode_ms: Time from first to last token, summed over the earlier epochs.
        waiting_since: When it was last put into the queue, in ns since the epoch.

    """

    waiting_since: int
    tokens: list[int] = []
    texts: list[str] = []
    decode_ms: float = 0.0


class _Started(Protocol):
    """What `Strikes` looks at in a request that was in the core when it crashed."""

    request: str
    started: bool
    output: int


def queued(claimed: Claimed) -> RequestQueued:
    """Payload of a claimed request.

    Raises:
        PayloadError: It is malformed.
        ValueError: This version does not know its schema.

    """
    payload = codec.decode(claimed.queued)
    if not isinstance(payload, RequestQueued):
        raise ValueError(f"request.queued has schema {claimed.queued.schema}, which is newer")
    return payload


def seeded(payload: RequestQueued) -> SamplingParams:
    """A request without a seed gets one that every claim of it finds again."""
    if payload.params.seed is not None:
        return payload.params
    digest = sha256(payload.request.encode()).digest()
    return msgspec.structs.replace(payload.params, seed=int.from_bytes(digest[:8]) >> 1)


async def history(store: EventStore, claimed: Claimed) -> History:
    """Read back what was committed for a request before this claim.

    Raises:
        PayloadError: A payload is malformed.

    """
    past = History(waiting_since=claimed.queued.time)
    if claimed.epoch == 1:
        return past
    last: dict[int, float] = {}
    async for event in store.read(
        after=claimed.queued.version,
        stream=claimed.stream,
        types=("tokens.generated", "request.abandoned"),
    ):
        if event.request != claimed.request:
            continue
        if event.type == "request.abandoned":
            past.waiting_since = event.time
            continue
        payload = codec.decode(event)
        if not isinstance(payload, TokensGenerated):
            raise codec.PayloadError(f"tokens.generated has schema {event.schema}, which is newer")
        past.tokens += payload.tokens
        past.texts.append(payload.text)
        if payload.offsets:
            last[payload.epoch] = payload.offsets[-1]
    past.decode_ms = sum(last.values())
    return past


class Strikes:
    """Which requests were computed when the core crashed, several times in a row.

    A crash that came after new output is the first in a row again. Who was there twice is a
    suspect, and is computed alone: so at the third crash it is known who did it.
    """

    SUSPECT = 2
    POISON = 3

    def __init__(self) -> None:
        self._strikes: dict[str, tuple[int, int]] = {}  # request: crashes in a row, output then

    def crashed(self, requests: Iterable[_Started]) -> None:
        """Count a crash against the requests that were in a batch."""
        for request in requests:
            if request.started:
                count, output = self._strikes.get(request.request, (0, -1))
                count = count + 1 if request.output == output else 1
                self._strikes[request.request] = (count, request.output)

    def suspect(self, request: str) -> bool:
        """Whether it must be computed alone."""
        return self._strikes.get(request, (0, 0))[0] >= self.SUSPECT

    def poison(self, request: str) -> bool:
        """Whether it must not be computed again."""
        return self._strikes.get(request, (0, 0))[0] >= self.POISON

    def forget(self, request: str) -> None:
        """The request ended."""
        self._strikes.pop(request, None)

"""Seals: events that prove the events before them.

A seal covers ``first..last`` and its root covers the previous seal's, so the newest root stands for
the whole log up to its ``last``. The head extends that chain over the tail not sealed yet; write
it down elsewhere and `app.events.verify` proves later that nothing up to there was changed, left
out or cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

import msgspec

from app.events.catalogue import LogSealed
from app.events.codec import PayloadError, decode, new
from app.events.envelope import Event
from app.events.logstore import LogStore
from app.events.merkle import GENESIS, Merkle, chain
from app.events.store import Append, Appended, StoreClosed, StoreError

__all__ = ["SEAL_STREAM", "Head", "Sealer", "head", "seal_now"]

log = logging.getLogger(__name__)

SEAL_STREAM = "log"
"""Stream of the seals."""

LARGEST = 65_536
"""Most events under one seal."""

PAGE = 8_192


class Head(msgspec.Struct, frozen=True):
    """What to write down elsewhere: everything up to ``seq`` has this ``root`` (hex)."""

    incarnation: str
    seq: int
    root: str


class Sealed(msgspec.Struct, frozen=True):
    """Where the newest seal ends.

    ``seq`` is the seal's own position; ``version`` that of the seals' stream when it was read.
    """

    version: int = 0
    seq: int = 0
    last: int = 0
    root: bytes = GENESIS


def read_seal(event: Event) -> LogSealed:
    """Decode a seal.

    Raises:
        PayloadError: It is none.

    """
    payload = decode(event)
    if not isinstance(payload, LogSealed):
        raise PayloadError(f"event {event.seq} is not a seal")
    return payload


async def newest_seal(store: LogStore, *, until: int | None = None) -> Sealed:
    """Find the end of the chain of seals, or where it ended when ``until`` was the head."""
    now = version = await store.stream_version(SEAL_STREAM)
    while version:  # the stream holds other facts of the log too
        event = (await store.fetch(stream=SEAL_STREAM, after=version - 1, limit=1))[0]
        if event.type == "log.sealed" and (until is None or event.seq <= until):
            seal = read_seal(event)
            return Sealed(now, event.seq, seal.last, bytes.fromhex(seal.root))
        version -= 1
    return Sealed(now)


async def head(store: LogStore, *, at: int | None = None) -> Head:
    """Root over the log up to ``at`` (as of now by default): what a seal there would say."""
    seq = await store.head()
    seq = seq if at is None else min(at, seq)
    sealed = await newest_seal(store, until=seq)
    root = sealed.root
    if sealed.last < seq:
        tree = await _tree(store, sealed.last, seq)
        root = chain(sealed.root, sealed.last + 1, seq, tree)
    return Head(store.incarnation, seq, root.hex())


async def seal_now(store: LogStore) -> Sealed | None:
    """Append one seal over the events since the last one.

    Returns:
        The new end of the chain; None if there was nothing to seal but seals, or if somebody
        else sealed at the same time.

    """
    sealed = await newest_seal(store)
    last = min(await store.head(), sealed.last + LARGEST)
    if not await _worth_sealing(store, sealed, last):
        return None
    tree = await _tree(store, sealed.last, last)
    root = chain(sealed.root, sealed.last + 1, last, tree)
    payload = LogSealed(
        first=sealed.last + 1,
        last=last,
        merkle=tree.hex(),
        previous=sealed.root.hex(),
        root=root.hex(),
    )
    outcome = await store.append(
        Append(stream=SEAL_STREAM, events=[new(payload)], expected=sealed.version)
    )
    return (
        Sealed(outcome.version, outcome.last_seq, last, root)
        if isinstance(outcome, Appended)
        else None
    )


async def _worth_sealing(store: LogStore, sealed: Sealed, last: int) -> bool:
    """Whether there is an unsealed event that is not a seal."""
    async for event in store.read(after=sealed.last, until=last):
        if event.type != "log.sealed":
            return True
    return False


async def _tree(store: LogStore, after: int, until: int) -> bytes:
    tree = Merkle()
    async for page in _leaf_pages(store, after, until):
        tree.extend(page)
    return tree.root()


async def _leaf_pages(store: LogStore, after: int, until: int) -> AsyncIterator[list[bytes]]:
    for start in range(after, until, PAGE):
        yield await store.leaves(after=start, until=min(start + PAGE, until))


class Sealer:
    """Seals in the background, off the write path.

    Args:
        store: The log.
        every: A seal is written when so many events are unsealed,
        seconds: or when the oldest unsealed event has waited so long.

    """

    def __init__(self, store: LogStore, *, every: int = 1000, seconds: float = 60.0) -> None:
        self._store = store
        self._every = every
        self._seconds = seconds

    async def run(self) -> None:
        """Seal until cancelled."""
        sealed = await newest_seal(self._store)
        while True:
            if sealed.seq <= sealed.last + 1:  # else others wrote while the seal was made
                await self._store.wait(after=max(sealed.last, sealed.seq))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await self._store.wait(after=sealed.last + self._every - 1)
            try:
                sealed = await seal_now(self._store) or await newest_seal(self._store)
            except StoreClosed:
                raise
            except StoreError:
                log.exception("sealing failed; trying again later")
                await asyncio.sleep(self._seconds)

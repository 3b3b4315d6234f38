"""Committed events as bytes on the wire.

A payload's stored JSON is spliced into frames as it is. What many clients need is encoded once:
`ItemCache` keeps recent items. A client that lags gets fewer and larger items: `frames` merges
adjacent deltas of the same text, and the versions still add up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from msgspec import Raw

from app.events.catalogue import MessageDelta, TokensGenerated
from app.events.envelope import Event, thread_stream
from app.transport.protocol import Item

__all__ = ["Delivery", "ItemCache", "frames", "merge", "to_event"]

MAX_ITEMS = 256
"""Most items in one ``events`` frame."""

MAX_BYTES = 65_536
"""Size at which an ``events`` frame is closed; one larger item still travels alone."""

MAX_MERGED = 32_768
"""Most payload bytes that go into one merged item."""

LAG = 8
"""A client that has more events than this to get is behind: deltas are merged for it."""

_encode = msgspec.json.encode
_tokens = msgspec.json.Decoder(TokensGenerated)
_delta = msgspec.json.Decoder(MessageDelta)


def _item(event: Event) -> bytes:
    return _encode(
        Item(
            v=event.version,
            seq=event.seq,
            type=event.type,
            time=event.time,
            actor=event.actor,
            schema=event.schema,
            request=event.request,
            run=event.run,
            data=Raw(event.data),
        )
    )


class ItemCache:
    """Recent items, encoded: a direct-mapped cache by ``seq``, so nothing needs evicting.

    Args:
        size: Slots; a power of two.
        largest: Items of more bytes than this are not kept.

    """

    def __init__(self, size: int = 4096, largest: int = 4096) -> None:
        assert size & (size - 1) == 0, "size must be a power of two"
        self._mask = size - 1
        self._largest = largest
        self._slots: list[tuple[int, bytes, bytes]] = [(0, b"", b"")] * size

    def encode(self, event: Event) -> bytes:
        """Return the event's item as JSON."""
        seq = event.seq
        kept, payload, data = self._slots[seq & self._mask]
        if kept == seq and payload == event.data:  # else its content was erased meanwhile
            return data
        data = _item(event)
        if len(data) <= self._largest:
            self._slots[seq & self._mask] = (seq, event.data, data)
        return data


# -------------------------------------------------------------------------------- merging


def _mergeable(event: Event) -> bool:
    """Whether an event is a delta of a shape this version knows."""
    return event.schema == 1 and event.type in ("tokens.generated", "message.delta")


def _same(a: Event, b: Event) -> bool:
    return (
        a.type == b.type
        and a.version + 1 == b.version
        and a.request == b.request
        and a.run == b.run
        and a.actor == b.actor
    )


def _groups(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Split events into stretches of adjacent deltas, and single events."""
    group: list[Event] = []
    size = 0
    for event in events:
        if group and (
            not _mergeable(event)
            or not _same(group[-1], event)
            or size + len(event.data) > MAX_MERGED
        ):
            yield group
            group = []
        size = size + len(event.data) if group else len(event.data)
        group.append(event)
        if not _mergeable(event):
            yield group
            group = []
    if group:
        yield group


def _parts(group: list[Event]) -> Iterator[tuple[list[Event], list[TokensGenerated]]]:
    """Split a stretch of token batches where they cannot be merged.

    A request's first batch stays alone, so that its time is kept: it is the time to first token.
    """
    events: list[Event] = []
    payloads: list[TokensGenerated] = []
    for event in group:
        payload = _tokens.decode(event.data)
        if payloads and not _continues(payloads[-1], payload):
            yield events, payloads
            events, payloads = [], []
        events.append(event)
        payloads.append(payload)
    if events:
        yield events, payloads


def _continues(a: TokensGenerated, b: TokensGenerated) -> bool:
    return (
        a.batch > 0
        and a.request == b.request
        and a.epoch == b.epoch
        and a.batch + 1 == b.batch
        and a.index + len(a.tokens) == b.index
        and bool(a.offsets) == bool(b.offsets)
    )


def _merged(events: list[Event], data: bytes) -> bytes:
    first, last = events[0], events[-1]
    return _encode(
        Item(
            v=first.version,
            to=last.version,
            seq=last.seq,
            type=last.type,
            time=last.time,
            actor=last.actor,
            request=last.request,
            run=last.run,
            data=Raw(data),
        )
    )


def _merge_tokens(group: list[Event], cache: ItemCache) -> Iterator[tuple[int, bytes]]:
    for events, payloads in _parts(group):
        if len(events) == 1:
            yield events[0].version, cache.encode(events[0])
            continue
        head = payloads[0]
        whole = TokensGenerated(
            request=head.request,
            epoch=head.epoch,
            batch=head.batch,
            index=head.index,
            tokens=[token for p in payloads for token in p.tokens],
            text="".join([p.text for p in payloads]),
            offsets=[offset for p in payloads for offset in p.offsets],
            logprobs=[one for p in payloads for one in p.logprobs],
            prompt_logprobs=[one for p in payloads for one in p.prompt_logprobs],
        )
        yield events[-1].version, _merged(events, _encode(whole))


def _merge_deltas(group: list[Event], cache: ItemCache) -> Iterator[tuple[int, bytes]]:
    """Merge a stretch of deltas by message.

    Of each message's the first stays alone, so that its time is kept: it may be its first text.
    """
    decoded = [(event, _delta.decode(event.data)) for event in group]
    for message, stretch in itertools.groupby(decoded, key=lambda pair: pair[1].message):
        (first, _), *rest = stretch
        yield first.version, cache.encode(first)
        if len(rest) == 1:
            yield rest[0][0].version, cache.encode(rest[0][0])
        elif rest:
            events = [event for event, _ in rest]
            whole = MessageDelta(message=message, text="".join([p.text for _, p in rest]))
            yield events[-1].version, _merged(events, _encode(whole))


def merge(events: Sequence[Event], cache: ItemCache) -> Iterator[tuple[int, bytes]]:
    """Encode events, adjacent deltas of one text as one item.

    Yields:
        The last version an item covers, and the item.

    """
    for group in _groups(events):
        try:
            if len(group) == 1:
                yield group[0].version, cache.encode(group[0])
            elif group[0].type == "tokens.generated":
                yield from list(_merge_tokens(group, cache))
            else:
                yield from list(_merge_deltas(group, cache))
        except msgspec.DecodeError:  # not the payload we know: pass it on as it is
            yield from ((event.version, cache.encode(event)) for event in group)


# -------------------------------------------------------------------------------- framing


def frames(
    thread: str, first: int, items: Iterable[tuple[int, bytes]]
) -> Iterator[tuple[int, bytes]]:
    """Pack encoded items into ``events`` frames of bounded size.

    Args:
        thread: Id of the thread (it needs no escaping: see ``ThreadId``).
        first: Version the first item begins at.
        items: Last version and bytes of each item, in order.

    Yields:
        The last version a frame covers, and the frame.

    """
    pack: list[bytes] = []
    size = last = 0
    for version, data in items:
        if pack and (len(pack) >= MAX_ITEMS or size + len(data) > MAX_BYTES):
            yield last, _frame(thread, first, last, pack)
            first, pack, size = last + 1, [], 0
        pack.append(data)
        size += len(data)
        last = version
    if pack:
        yield last, _frame(thread, first, last, pack)


def _frame(thread: str, first: int, last: int, items: list[bytes]) -> bytes:
    head = f'{{"t":"events","thread":"{thread}","first":{first},"last":{last},"items":['
    return b"".join((head.encode(), b",".join(items), b"]}"))


class Delivery:
    """Where one follower of a thread stands; the only maker of ``events`` frames.

    It holds a cursor and no queue: what is not sent yet stays in the log.
    """

    __slots__ = ("_cache", "cursor", "thread")

    def __init__(self, thread: str, after: int, cache: ItemCache) -> None:
        self.thread = thread
        self.cursor = after
        self._cache = cache

    def frames(self, events: Sequence[Event]) -> Iterator[bytes]:
        """Frames for the events right after the cursor, which moves as frames are taken.

        Raises:
            RuntimeError: The events do not follow the cursor without a hole.

        """
        if not events:
            return
        first, last = events[0].version, events[-1].version
        if first != self.cursor + 1 or last - first + 1 != len(events):
            raise RuntimeError(
                f"thread {self.thread}: read {first}..{last} ({len(events)} events) "
                f"after version {self.cursor}"
            )
        if len(events) == 1:
            self.cursor = last
            yield _frame(self.thread, first, last, [self._cache.encode(events[0])])
            return
        if len(events) > LAG:
            items: Iterable[tuple[int, bytes]] = merge(events, self._cache)
        else:
            items = [(event.version, self._cache.encode(event)) for event in events]
        for version, frame in frames(self.thread, first, items):
            self.cursor = version
            yield frame


def to_event(item: Item, thread: str) -> Event:
    """Return an item as an event to fold; a merged one stands for its last event.

    Folding it gives the state that folding all the events it covers gives.
    """
    data = bytes(item.data)
    if item.to is not None and item.type == "tokens.generated":
        payload = _tokens.decode(data)
        last = payload.batch + item.to - item.v
        data = _encode(msgspec.structs.replace(payload, batch=last))
    return Event(
        seq=item.seq,
        stream=thread_stream(thread),
        version=item.last,
        type=item.type,
        schema=item.schema,
        time=item.time,
        actor=item.actor,
        request=item.request,
        run=item.run,
        cause=None,
        data=data,
    )

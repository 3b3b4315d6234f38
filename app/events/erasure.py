"""Erase what a person may demand: find the events, check that nothing is at work there, redact.

First a `Plan`: the events of a conversation, of a user, or some by number. Then `redact`, a
thousand events a transaction, each with a ``log.redacted`` that proves what is left. It may be cut
short at any point and run again: what is erased already is passed over.

Archived events are brought back into the log's table first, so that their segments are written
anew without them, and the old objects deleted; a later archiving moves what is left out again.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from app.errors import EverlogError, InputError
from app.events.archive import foreign, restore
from app.events.codec import PayloadError, decode
from app.events.envelope import Event, actor_of, thread_of, thread_stream
from app.events.leaf import inner
from app.events.logstore import LogStore
from app.events.ops import Erasure
from app.events.redaction import remainder
from app.events.store import Conflict, StoreError

__all__ = ["Plan", "Redacted", "plan_seqs", "plan_threads", "plan_user", "redact"]

CHUNK = 1_000
"""Most payloads erased in one transaction."""

GAP = 16
"""Rows that may be read in vain rather than by another query."""

T = TypeVar("T")

Progress = Callable[[int, int], None]

_RUN_ENDS = ("run.completed", "run.failed", "run.stopped", "run.interrupted")


class Plan(msgspec.Struct):
    """What to erase: events with content, by ``seq``.

    ``versions`` are those of all streams concerned, as they were when the plan was made.
    """

    seqs: list[int] = msgspec.field(default_factory=list)
    versions: dict[str, int] = msgspec.field(default_factory=dict)

    @property
    def threads(self) -> list[str]:
        """Ids of the conversations concerned."""
        return [id for id in map(thread_of, self.versions) if id is not None]


class Redacted(msgspec.Struct):
    """What was done: how many payloads were erased, and the records of it (``seq``).

    ``objects`` of an earlier life of the log still hold such payloads, perhaps: other copies of it
    may need them, so they are not deleted.
    """

    events: int = 0
    records: list[int] = msgspec.field(default_factory=list)
    objects: list[str] = msgspec.field(default_factory=list)


# --------------------------------------------------------------------------------- planning


async def plan_threads(store: LogStore, threads: Iterable[str]) -> Plan:
    """Plan to erase whole conversations.

    Raises:
        EverlogError: One of them is at work; the message says what to do.

    """
    plan = Plan()
    for thread in dict.fromkeys(threads):
        stream = thread_stream(thread)
        plan.versions[stream] = version = await store.stream_version(stream)
        async for event in store.read(stream=stream, until=version):
            _add(plan, event)
    return await _idle(store, plan)


async def plan_user(store: LogStore, user: str, progress: Progress | None = None) -> Plan:
    """Plan to erase a user: owned conversations, own requests, and all that ``user:<id>`` wrote.

    What the user's API keys wrote is the user's too. Reads the whole log.

    Raises:
        EverlogError: There is nothing of that user, or a conversation is at work.

    """
    plan, head = Plan(), await store.head()
    actors, own, seen = {actor_of(user)}, {f"user/{user}"}, False
    async for event in store.read(until=head):
        if event.type == "key.created" and (key := _read(event, _Key)) and key.user == user:
            actors.add(f"key:{key.name}")
        if _begins(event, user, actors):
            own.add(event.stream)
        if event.actor in actors or event.stream in own:
            seen = True
            plan.versions[event.stream] = event.version
            _add(plan, event)
        elif event.stream in plan.versions:
            plan.versions[event.stream] = event.version
        if progress is not None and event.seq % 10_000 == 0:
            progress(event.seq, head)
    if not seen:
        raise EverlogError(f"there is nothing of a user {user!r} in this log")
    return await _idle(store, plan)


async def plan_seqs(store: LogStore, seqs: Iterable[int]) -> Plan:
    """Plan to erase some events.

    Raises:
        InputError: There is no such event.
        EverlogError: The conversation that one of them is in is at work.

    """
    plan, head = Plan(), await store.head()
    for seq in sorted(set(seqs)):
        if not 1 <= seq <= head:
            raise InputError(f"there is no event {seq}; the log ends at {head}", field="seq")
        [event] = await store.fetch(after=seq - 1, until=seq)
        _add(plan, event)
        plan.versions[event.stream] = await store.stream_version(event.stream)
    return await _idle(store, plan)


def _begins(event: Event, user: str, actors: set[str]) -> bool:
    """Whether this event begins a stream of the user's own."""
    if event.type == "thread.created":
        created = _read(event, _Created)
        return created is not None and created.owner == user
    own = event.type == "request.queued" and event.actor in actors
    return own and not thread_of(event.stream)


def _read(event: Event, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(event.data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class _Created(msgspec.Struct):
    owner: str


class _Key(msgspec.Struct):
    name: str
    user: str | None = None


def _add(plan: Plan, event: Event) -> None:
    if remainder(event) is not None:
        plan.seqs.append(event.seq)


async def _idle(store: LogStore, plan: Plan) -> Plan:
    """Refuse a plan while one of its streams is at work."""
    for stream in plan.versions:
        if await _at_work(store, stream):
            thread = thread_of(stream)
            raise EverlogError(
                f"conversation {thread} is at work" if thread else f"{stream} is at work",
                hint="Wait until its answer has ended, or stop it. After a crash, start the "
                "server once: it ends what was left unfinished.",
            )
    return plan


async def _at_work(store: LogStore, stream: str) -> bool:
    """Whether a request or a run has not ended."""
    if await store.leases(stream=stream):
        return True
    runs: set[str | None] = set()
    async for event in store.read(stream=stream, types=("run.started", *_RUN_ENDS)):
        try:
            run = getattr(decode(event), "run", None)
        except PayloadError:
            continue
        runs = runs | {run} if event.type == "run.started" else runs - {run}
    return bool(runs)


# -------------------------------------------------------------------------------- redacting


async def redact(
    store: LogStore,
    plan: Plan,
    *,
    reason: str,
    actor: str = "system",
    progress: Progress | None = None,
) -> Redacted:
    """Erase what the plan says; durable for each thousand.

    Args:
        store: The log, open for writing.
        plan: See `plan_threads` and its neighbours.
        reason: Why. It stays in the log for ever, so it must hold nothing of the person.
        actor: Who, as in the envelope.
        progress: Called with events erased and events in all.

    Raises:
        EverlogError: A conversation of the plan has moved on since. What was erased before
            stays erased.
        StoreError: The log cannot be read or written.

    """
    done = Redacted()
    if await store.segments() or await store.uploads():  # also what an earlier run left over
        await restore(store, seqs=plan.seqs)
        done.objects = await foreign(store)
    for seqs in _batched(plan.seqs, CHUNK):
        erasures = [erasure async for erasure in _erasures(store, seqs)]
        if erasures:
            expected = {e.stream: plan.versions[e.stream] for e in erasures}
            done.records.append(await _submit(store, erasures, expected, reason, actor))
            done.events += len(erasures)
        if progress is not None:
            progress(done.events, len(plan.seqs))
    return done


async def _submit(
    store: LogStore, erasures: list[Erasure], expected: dict[str, int], reason: str, actor: str
) -> int:
    try:
        outcome = await store.redact(erasures, expected=expected, reason=reason, actor=actor)
    except ValueError as error:
        raise EverlogError(str(error), hint="Run it again.") from error
    if isinstance(outcome, Conflict):
        raise EverlogError("a conversation went on meanwhile", hint="Run it again.")
    return outcome.last_seq


async def _erasures(store: LogStore, seqs: Sequence[int]) -> AsyncIterator[Erasure]:
    """Read the rows and say what is left of each."""
    for span in _spans(seqs):
        wanted = set(span)
        for row in await store.rows(after=span[0] - 1, limit=span[-1] - span[0] + 1):
            if isinstance(row, StoreError):
                raise StoreError(
                    f"an event of {span[0]}..{span[-1]} cannot be read: {row.message}",
                    hint="see: everlog verify",
                )
            event, opening, _ = row
            left = remainder(event) if event.seq in wanted else None
            if left is not None:
                opening = inner(opening, event.data)
                yield Erasure(event.seq, event.stream, event.version, left, opening)


def _spans(seqs: Sequence[int]) -> Iterator[list[int]]:
    """Cut ascending positions where the gap between two is large."""
    span: list[int] = []
    for seq in seqs:
        if span and seq - span[-1] > GAP:
            yield span
            span = []
        span.append(seq)
    if span:
        yield span


def _batched(seqs: Sequence[int], size: int) -> Iterator[list[int]]:
    items = iter(seqs)
    while batch := list(itertools.islice(items, size)):
        yield batch

"""The envelope: what every event carries, whatever it says."""

from __future__ import annotations

import msgspec

__all__ = ["Event", "NewEvent", "actor_of", "request_stream", "thread_of", "thread_stream"]


class NewEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event that has not been appended yet.

    ``data`` is the payload as UTF-8 JSON; the store keeps these very bytes.
    ``time`` is nanoseconds since the epoch (UTC); the store fills it in when it is 0.
    """

    type: str
    data: bytes
    schema: int = 1
    actor: str = "system"
    request: str | None = None
    run: str | None = None
    cause: str | None = None
    time: int = 0


class Event(msgspec.Struct, frozen=True, gc=False):
    """One committed event. The fields are in the order of the stores' columns.

    Attributes:
        seq: Position in the log: 1, 2, 3 ... without gaps; the order of commit.
        stream: Consistency and reading boundary, such as ``thread/<id>``.
        version: Position in its stream: 1, 2, 3 ... without gaps.
        type: Name in the catalogue, such as ``message.posted``.
        schema: Version of the payload's shape; upcasters lift old ones on reading.
        time: Nanoseconds since the epoch, writer's clock; never used for ordering.
        actor: ``user:<id>``, ``key:<name>``, ``handler:<name>``, ``engine:<worker>`` or
            ``system``.
        request: Id of the engine request it belongs to, if any.
        run: Id of the run it belongs to, if any.
        cause: Command id, or decimal ``seq``, of what led to it, if known.
        data: The payload, UTF-8 JSON, verbatim as it was appended.

    """

    seq: int
    stream: str
    version: int
    type: str
    schema: int
    time: int
    actor: str
    request: str | None
    run: str | None
    cause: str | None
    data: bytes


def thread_stream(thread: str) -> str:
    """Name of the stream that holds a conversation."""
    return f"thread/{thread}"


def request_stream(request: str) -> str:
    """Name of the stream of a request that belongs to no conversation."""
    return f"request/{request}"


def thread_of(stream: str) -> str | None:
    """Id of the conversation a stream holds, or None for other streams."""
    kind, _, name = stream.partition("/")
    return name if kind == "thread" else None


def actor_of(user: str) -> str:
    """Actor of what a user does: ``user:<id>``; the id of an API key's user is an actor itself."""
    return user if user.startswith("key:") else f"user:{user}"

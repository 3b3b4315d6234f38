"""The wire protocol ``everlog.v1``: its frames, and how a client's frame is read.

Everything here is plain data and plain functions, so the server, the terminal client and the
tests share it. ``docs/protocol.md`` is the prose. Frames are JSON objects; ``t`` names the type.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from app.errors import InputError

__all__ = [
    "PROTOCOL",
    "Ack",
    "ClientFrame",
    "Close",
    "CloseCode",
    "Delete",
    "Events",
    "Feedback",
    "FrameError",
    "Hello",
    "Item",
    "Live",
    "Model",
    "Named",
    "Notice",
    "Open",
    "Ping",
    "Pong",
    "Post",
    "Refuse",
    "Rename",
    "Reset",
    "ServerFrame",
    "Stop",
    "Threads",
    "User",
    "Welcome",
    "decode_client",
    "decode_server",
    "encode",
]

PROTOCOL = "everlog.v1"

#: Frames the protocol has names for but this server does not take yet.
UNSUPPORTED = frozenset(
    {"edit", "regenerate", "act", "answer", "settings", "upload", "audio", "fork", "share"}
)

Id = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
ThreadId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Version = Annotated[int, Meta(ge=0, le=2**53 - 1)]

_PATTERNS = {"id": "a UUID in lower case", "thread": "1 to 64 of A-Z a-z 0-9 . _ -"}


class CloseCode:
    """WebSocket close codes this server uses (RFC 6455 §7.4; 4000-4999 are private)."""

    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL = 1011
    RESTART = 1012
    KEY = 4401
    ORIGIN = 4403
    PROTOCOL = 4426


# ----------------------------------------------------------------------- client to server


class _FromClient(
    msgspec.Struct, tag_field="t", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """A field this server does not know is refused: dropping it could drop what it means."""


class Hello(msgspec.Struct, tag_field="t", tag="hello", frozen=True, kw_only=True):
    """First frame of a connection. Unknown fields are ignored, so that newer clients get in."""

    protocol: str
    token: str | None = None


class Open(_FromClient, tag="open", frozen=True, kw_only=True):
    """Follow a thread after version ``after``; 0 is from its beginning.

    ``incarnation`` is that of the log in which ``after`` was seen; None trusts ``after``.
    """

    thread: ThreadId
    after: Version = 0
    incarnation: str | None = None


class Close(_FromClient, tag="close", frozen=True, kw_only=True):
    """Follow a thread no longer. Cancels nothing."""

    thread: ThreadId


class Post(_FromClient, tag="post", frozen=True, kw_only=True):
    """Say something. The server makes the message's id if there is none.

    ``params`` are sampling parameters for the answer, by name; those left out are the app's.
    """

    id: Id
    thread: ThreadId
    content: Annotated[str, Meta(min_length=1, max_length=100_000)]
    message: Id | None = None
    parent: Id | None = None
    params: dict[str, Any] | None = None


class Stop(_FromClient, tag="stop", frozen=True, kw_only=True):
    """Stop what runs in a thread."""

    id: Id
    thread: ThreadId


class Rename(_FromClient, tag="rename", frozen=True, kw_only=True):
    """Give a thread a title."""

    id: Id
    thread: ThreadId
    title: Annotated[str, Meta(min_length=1, max_length=200)]


class Delete(_FromClient, tag="delete", frozen=True, kw_only=True):
    """Hide a thread."""

    id: Id
    thread: ThreadId


class Feedback(_FromClient, tag="feedback", frozen=True, kw_only=True):
    """Judge a message: 1, -1, or 0 to withdraw."""

    id: Id
    thread: ThreadId
    message: Id
    value: Literal[-1, 0, 1]
    comment: Annotated[str, Meta(max_length=10_000)] | None = None


class Ping(_FromClient, tag="ping", frozen=True, kw_only=True):
    """Ask for the heads of the opened threads."""

    n: Version = 0


Command = Post | Stop | Rename | Delete | Feedback
ClientFrame = Hello | Open | Close | Post | Stop | Rename | Delete | Feedback | Ping


# ----------------------------------------------------------------------- server to client


class _FromServer(msgspec.Struct, tag_field="t", frozen=True, kw_only=True, gc=False):
    pass


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What generates answers; ``context`` in tokens."""

    name: str
    context: int
    device: str


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """Something with a name."""

    name: str


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Who a connection acts for."""

    id: str


class Welcome(_FromServer, tag="welcome", frozen=True, kw_only=True):
    """Answer to ``hello``. ``incarnation`` identifies the log that versions count in."""

    protocol: str
    incarnation: str
    version: str
    user: User
    app: Named
    model: Model | None = None


class Ack(_FromServer, tag="ack", frozen=True, kw_only=True):
    """The command is committed: its last event has this ``version`` and ``seq``."""

    id: str
    thread: str
    version: int
    seq: int


RefusalCode = Literal[
    "bad_frame",
    "bad_field",
    "not_found",
    "forbidden",
    "limit",
    "unsupported",
    "draining",
    "unavailable",
    "internal",
]
"""What this server says in ``refuse``; newer ones may have more."""


class Refuse(_FromServer, tag="refuse", frozen=True, kw_only=True):
    """A frame changed nothing. ``field`` is the path of what was wrong with it.

    ``id`` is that of the command, ``thread`` that of the ``open``, where there was one.
    """

    id: str | None
    code: str
    message: str
    field: str | None = None
    thread: str | None = None


class Item(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One event, or several merged into one.

    A merged item covers the versions ``v..to``; its ``seq`` and ``time`` are those of the last.
    ``schema`` is left out while it is 1.
    """

    v: int
    to: int | None = None
    seq: int
    type: str
    time: int
    actor: str
    schema: int = 1
    request: str | None = None
    run: str | None = None
    data: Raw

    @property
    def last(self) -> int:
        """The last version this item covers."""
        return self.v if self.to is None else self.to


class Events(_FromServer, tag="events", frozen=True, kw_only=True):
    """Versions ``first..last`` of a thread, without a hole."""

    thread: str
    first: int
    last: int
    items: list[Item]


class Live(_FromServer, tag="live", frozen=True, kw_only=True):
    """Everything up to ``version``, the newest when it was read, has been sent."""

    thread: str
    version: int


class Reset(_FromServer, tag="reset", frozen=True, kw_only=True):
    """The cursor means nothing here: replace everything by ``state``, go on after ``version``."""

    thread: str
    version: int
    reason: str
    state: Raw


class Threads(_FromServer, tag="threads", frozen=True, kw_only=True):
    """The list of threads has changed."""

    head: int


class Notice(_FromServer, tag="notice", frozen=True, kw_only=True):
    """Something about the service itself; not in the log, not repeated."""

    level: Literal["info", "error"]
    code: str
    message: str


class Pong(_FromServer, tag="pong", frozen=True, kw_only=True):
    """Newest version of every opened thread."""

    n: int
    heads: dict[str, int]


ServerFrame = Welcome | Ack | Refuse | Events | Live | Reset | Threads | Notice | Pong


# -------------------------------------------------------------------------------- reading


class FrameError(InputError):
    """A frame that cannot be taken. ``code`` and ``field`` go into ``refuse``."""

    def __init__(
        self, message: str, *, code: RefusalCode, field: str | None = None, id: str | None = None
    ) -> None:
        super().__init__(message, field=field)
        self.code = code
        self.id = id


class _Probe(msgspec.Struct):
    """What can be known of a frame that did not decode."""

    t: Annotated[str, Meta(max_length=64)] | None = None
    id: Annotated[str, Meta(max_length=64)] | None = None


_encoder = msgspec.json.Encoder()
_client: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)
_server: msgspec.json.Decoder[ServerFrame] = msgspec.json.Decoder(ServerFrame)
_probe = msgspec.json.Decoder(_Probe)
_TYPES = {"hello", "open", "close", "post", "stop", "rename", "delete", "feedback", "ping"}

encode = _encoder.encode


def decode_client(data: bytes | str) -> ClientFrame:
    """Read a client's frame.

    Raises:
        FrameError: With code ``bad_frame`` (not a frame), ``bad_field`` (a field is wrong, and
            named) or ``unsupported``.

    """
    try:
        return _client.decode(data)
    except msgspec.ValidationError as error:
        raise _explain(data, error) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise FrameError(f"not JSON: {error}", code="bad_frame") from None
    except RecursionError:
        raise FrameError("nested too deeply", code="bad_frame") from None


def decode_server(data: bytes | str) -> ServerFrame:
    """Read a server's frame; unknown fields are ignored."""
    return _server.decode(data)


def _explain(data: bytes | str, error: msgspec.ValidationError) -> FrameError:
    """Turn a validation error into one that names the field the way a client sees it."""
    try:
        probe = _probe.decode(data)
    except msgspec.ValidationError:
        probe = _Probe()
    reason, field = _path(str(error))
    if probe.t in UNSUPPORTED:
        return FrameError(
            f"{probe.t!r} is not supported by this server", code="unsupported", id=probe.id
        )
    if probe.t not in _TYPES:
        if field == "t" and probe.t is not None:
            reason = f"unknown frame type {probe.t!r}"
        return FrameError(reason, code="bad_frame", field=field, id=probe.id)
    if "matching regex" in reason and field is not None:
        expected = _PATTERNS["thread" if field == "thread" else "id"]
        reason = f"Expected {expected}"
    return FrameError(reason, code="bad_field", field=field, id=probe.id)


_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"(missing required|contains unknown) field `(?P<name>[^`]*)`")


def _path(message: str) -> tuple[str, str | None]:
    """Split msgspec's message into the reason and the path of the field it is about."""
    at = _AT.search(message)
    path = at["path"] if at else ""
    reason = message[: at.start()] if at else message
    named = _MISSING.search(reason)
    if named:
        path = f"{path}.{named['name']}" if path else named["name"]
    return reason.replace("`", "'"), path or None

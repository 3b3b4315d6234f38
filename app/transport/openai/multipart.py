"""Bodies of ``multipart/form-data`` (RFC 7578), taken apart as they come. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP

import msgspec

from app.transport.openai.errors import ApiError

__all__ = ["Begin", "End", "Form"]

MAX_HEAD = 16 << 10
"""Most bytes of a part's headers."""
_GAP = b"\r\n\r\n"


class Begin(msgspec.Struct, frozen=True):
    """A part begins; ``filename`` is None for what is no file."""

    name: str
    filename: str | None


class End(msgspec.Struct, frozen=True):
    """The part has ended."""


class Form:
    """Takes a body apart. Feed it until `ended`; what comes behind is ignored.

    Args:
        content_type: The header.

    Raises:
        ApiError: 400: it is no form; here, or from `feed`.

    """

    def __init__(self, content_type: str | None) -> None:
        head = Message()
        head["content-type"] = content_type or ""
        try:
            boundary = head.get_boundary()
        except (ValueError, LookupError):  # said to be in a charset that there is not
            boundary = None
        if head.get_content_type() != "multipart/form-data" or not boundary:
            raise ApiError(400, "the body must be multipart/form-data", code="invalid_form")
        self.ended = False
        self._mark = b"\r\n--" + boundary.encode("latin-1", "replace")
        self._buffer = bytearray(b"\r\n")  # so that the first boundary is like the others
        self._inside = False

    def feed(self, data: bytes) -> Iterator[Begin | bytes | End]:
        """Take in bytes; yields what they complete."""
        if not self.ended:
            self._buffer += data
        while not self.ended:
            at = self._buffer.find(self._mark)
            if at < 0:
                sure = len(self._buffer) - len(self._mark) + 1
                if sure > 0:
                    yield from self._say(sure)
                return
            yield from self._say(at)
            begun = self._head()
            if begun is None:
                return
            if self._inside:
                self._inside = False
                yield End()
            if isinstance(begun, Begin):
                self._inside = True
                yield begun

    def _say(self, count: int) -> Iterator[bytes]:
        """Content of the part, or nothing outside of one."""
        said = bytes(self._buffer[:count])
        del self._buffer[:count]
        if self._inside and said:
            yield said

    def _head(self) -> Begin | bool | None:
        """The part behind the boundary at the beginning; False: none; None: not yet known."""
        start = len(self._mark)
        if self._buffer[start : start + 2] == b"--":
            self.ended = True
            self._buffer.clear()
            return False
        end = self._buffer.find(_GAP, start)
        if end < 0:
            if len(self._buffer) > start + MAX_HEAD:
                raise ApiError(400, "the headers of a part are too long", code="invalid_form")
            return None
        begun = _begin(bytes(self._buffer[start:end]))
        del self._buffer[: end + len(_GAP)]
        return begun


def _begin(head: bytes) -> Begin:
    try:
        found = BytesParser(policy=HTTP).parsebytes(head.lstrip() + _GAP, headersonly=True)
        name = found.get_param("name", header="content-disposition")
        filename = found.get_filename()
    except (ValueError, LookupError):  # the parser lets errors of charsets through
        name = filename = None
    if not isinstance(name, str):
        raise ApiError(400, "a part of the form has no name", code="invalid_form")
    return Begin(_whole(name), None if filename is None else _whole(filename))


def _whole(text: str) -> str:
    """The text without halves of characters, which no log takes."""
    return text.encode("utf-8", "replace").decode()

"""Errors over HTTP: RFC 9457 problem details; and reading query parameters."""

from __future__ import annotations

import http

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.errors import UNEXPLAINED, EverlogError, InputError
from app.events.store import StoreError

__all__ = ["HANDLERS", "Problem", "number", "problem"]


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Body of an ``application/problem+json`` response."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    field: str | None = None


def problem(
    status: int, detail: str, *, field: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    """Return an error response."""
    body = Problem(title=_title(status), status=status, detail=detail, field=field)
    # ``type`` equals its default and would be left out; RFC 9457 reads its absence the same way.
    return Response(
        msgspec.json.encode(body),
        status_code=status,
        headers=headers,
        media_type="application/problem+json",
    )


def _title(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def number(
    request: Request, name: str, default: int, *, least: int = 0, most: int = 2**53 - 1
) -> int:
    """Return a whole number from the query string.

    Raises:
        InputError: It is not one, or out of range.

    """
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 16:
        raise InputError(f"expected a whole number, got {text[:40]!r}", field=name)
    value = int(text)
    if not least <= value <= most:
        raise InputError(f"expected {least} to {most}, got {value}", field=name)
    return value


def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == 404 and detail == _title(404):
        detail = f"there is nothing at {request.url.path}"
    elif error.status_code == 405:
        detail = f"{request.method} is not allowed at {request.url.path}"
    return problem(error.status_code, detail, headers=dict(error.headers or {}))


def _on_input(request: Request, error: Exception) -> Response:
    assert isinstance(error, InputError)
    return problem(400, error.reason, field=error.field)


def _on_known(request: Request, error: Exception) -> Response:
    assert isinstance(error, EverlogError)
    return problem(500, error.message)


def _on_store(request: Request, error: Exception) -> Response:
    assert isinstance(error, StoreError)
    return problem(503, error.message)


def _on_bug(request: Request, error: Exception) -> Response:
    return problem(500, UNEXPLAINED)


HANDLERS = {
    HTTPException: _on_http,
    InputError: _on_input,
    StoreError: _on_store,
    EverlogError: _on_known,
    Exception: _on_bug,
}
"""Exception handlers for Starlette."""

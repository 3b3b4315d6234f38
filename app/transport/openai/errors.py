"""Errors as OpenAI's clients expect them: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.chat.admission import RETRY_SECONDS, Full
from app.errors import UNEXPLAINED, EverlogError, InputError
from app.events.catalogue import RequestFailed
from app.events.store import StoreError

__all__ = ["ApiError", "failed", "of", "refusal", "renamed"]

#: HTTP status -> the type that clients look at.
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
#: Code of ``request.failed`` -> HTTP status and code of the error.
_FAILURES = {
    "invalid": (400, "invalid_value"),
    "context": (400, "context_length_exceeded"),
    "timeout": (504, "timeout"),
}


class ApiError(EverlogError):
    """A request that cannot be served.

    Args:
        status: HTTP status.
        message: Why, for a person.
        param: Path of the field that is to blame, such as ``messages[0].content``.
        code: Why, for a program.
        retry: Seconds after which it may be tried again.

    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry = status, param, code, retry

    @property
    def type(self) -> str:
        """Kind of error, as OpenAI names them."""
        known = "invalid_request_error" if self.status < 500 else "server_error"
        return _TYPES.get(self.status, known)

    def body(self) -> dict[str, Any]:
        """The JSON object that says so."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """The same as an HTTP response."""
        headers = {} if self.retry is None else {"retry-after": str(self.retry)}
        return Response(
            msgspec.json.encode(self.body()),
            status_code=self.status,
            headers=headers,
            media_type="application/json",
        )


def refusal(param: str, message: str, *, code: str = "invalid_value") -> ApiError:
    """A field that cannot be taken as it is."""
    return ApiError(400, message, param=param, code=code)


def renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    """The same error with the names that fields have in an endpoint."""

    def own(text: str) -> str:
        for name, other in names.items():
            text = text.replace(name, other)
        return text

    param = None if error.param is None else own(error.param)
    return ApiError(error.status, own(error.message), param=param, code=error.code)


def failed(failure: RequestFailed) -> ApiError:
    """What a failed request of the engine means to a client."""
    status, code = _FAILURES.get(failure.code, (500, failure.code))
    param, _, rest = failure.message.partition(": ")
    named = failure.code == "invalid" and rest and " " not in param
    return ApiError(
        status,
        failure.message,
        param=param.removeprefix("params.") if named else None,
        code=code,
    )


def of(error: Exception) -> ApiError:
    """Translate any error; what is not meant for people becomes a 500 without details."""
    match error:
        case ApiError():
            return error
        case HTTPException(status_code=status, detail=detail):
            return ApiError(status, detail)
        case InputError(reason=reason, field=field):
            param = (field or "").removeprefix("params.") or None
            return ApiError(400, reason, param=param, code="invalid_value")
        case Full(own=own, message=message):
            status, code = (429, "queue_limit_exceeded") if own else (503, "queue_full")
            return ApiError(status, message, code=code, retry=RETRY_SECONDS)
        case StoreError(message=message):
            return ApiError(503, message, code="log_unavailable", retry=1)
        case EverlogError(message=message):
            return ApiError(500, message)
        case _:
            return ApiError(500, UNEXPLAINED, code="internal_error")

"""Spans to a receiver, by OTLP over HTTP. Needs ``pip install 'everlog[otel]'``.

The exporter is OpenTelemetry's own, so what its environment variables say holds: headers, timeout,
compression, certificates (``OTEL_EXPORTER_OTLP_*``), and the name of the service
(``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from app import __version__
from app.errors import StartupError
from app.telemetry.spans import Span

__all__ = ["Exporter", "Refused", "Unreachable"]

PATH = "/v1/traces"
_HINT = "Install what it needs: pip install 'everlog[otel]'"
#: The receiver has understood, and does not want these very spans.
_BAD = frozenset({400, 413, 422})


class Unreachable(Exception):
    """The receiver did not take spans now; it may later."""


class Refused(Exception):
    """The receiver will never take these spans."""


class Exporter:
    """Sends spans. It blocks: call it in a thread, one at a time.

    Args:
        endpoint: Base URL of the receiver; ``/v1/traces`` is added if it has no such path.
        node: Name of this process.

    Raises:
        StartupError: The packages are not installed, or the endpoint is no URL.

    """

    def __init__(self, endpoint: str, *, node: str) -> None:
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.netloc:
            raise StartupError(
                f"telemetry.endpoint is not a URL: {endpoint!r}",
                hint="It looks like http://localhost:4318",
            )
        try:
            import requests
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
        except ImportError as error:
            raise StartupError("telemetry.endpoint is set", hint=_HINT) from error
        base = endpoint.rstrip("/")
        self.endpoint = base if base.endswith(PATH) else base + PATH
        self._status: int | None = None
        session = requests.Session()
        session.hooks["response"].append(self._note)
        self._exporter = OTLPSpanExporter(endpoint=self.endpoint, session=session)
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)  # we say it
        given: dict[str, Any] = {"service.instance.id": node, "service.version": __version__}
        named = "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        if not named and not os.environ.get("OTEL_SERVICE_NAME"):
            given["service.name"] = "everlog"
        self._resource = Resource.create(given)

    def _note(self, response: Any, *args: Any, **kwargs: Any) -> None:
        self._status = response.status_code

    def send(self, spans: Sequence[Span]) -> None:
        """Send spans.

        Raises:
            Unreachable: Nobody took them.
            Refused: They were understood, and refused.

        """
        from opentelemetry.sdk.trace.export import SpanExportResult

        self._status = None
        result = self._exporter.export([_readable(span, self._resource) for span in spans])
        if result is SpanExportResult.SUCCESS:
            return
        if self._status in _BAD:
            raise Refused(f"status {self._status}")
        raise Unreachable("no answer" if self._status is None else f"status {self._status}")

    def close(self) -> None:
        """Send nothing any more; a `send` that waits gives up."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _readable(span: Span, resource: Any) -> Any:
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    def context(id: int) -> SpanContext:
        sampled = TraceFlags(TraceFlags.SAMPLED)
        return SpanContext(span.trace, id, is_remote=False, trace_flags=sampled)

    attributes = dict(span.attributes)
    if span.error is not None:
        attributes["error.type"] = span.error
    return ReadableSpan(
        name=span.name,
        context=context(span.id),
        parent=None if span.parent is None else context(span.parent),
        resource=resource,
        attributes=attributes,
        events=[Event(name, timestamp=time) for time, name in span.marks],
        kind=SpanKind.CLIENT if span.client else SpanKind.INTERNAL,
        status=Status(StatusCode.UNSET if span.error is None else StatusCode.ERROR),
        start_time=span.start,
        end_time=span.end,
        instrumentation_scope=InstrumentationScope("everlog", __version__),
    )

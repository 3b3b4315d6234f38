"""A receiver of OTLP over HTTP: decodes what comes, and can refuse it or be away."""

from __future__ import annotations

import contextlib
import gzip
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Received:
    """A span as it came."""

    def __init__(self, span: Any, resource: Any) -> None:
        self.trace = span.trace_id.hex()
        self.id = span.span_id.hex()
        self.parent = span.parent_span_id.hex()
        self.name: str = span.name
        self.kind: int = span.kind
        self.start: int = span.start_time_unix_nano
        self.end: int = span.end_time_unix_nano
        self.failed = span.status.code == 2
        self.attributes = {each.key: _plain(each.value) for each in span.attributes}
        self.marks = [event.name for event in span.events]
        self.resource = {each.key: _plain(each.value) for each in resource.attributes}


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(each) for each in value.array_value.values]
    return getattr(value, kind)


class Receiver:
    """What came until now. ``answer`` decides on each message: its status."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.headers: list[dict[str, str]] = []
        self.messages = 0
        self.answer: Callable[[list[Received]], int] = lambda spans: 200
        self.url = ""

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        """A message came."""
        assert path == "/v1/traces"
        data = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
        message = ExportTraceServiceRequest.FromString(data)
        found = [
            Received(span, group.resource)
            for group in message.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]
        self.messages += 1
        status = self.answer(found)
        if status == 200:
            self.headers.append(headers)
            self.spans += found
        return status

    def until(self, enough: Callable[[list[Received]], Any], seconds: float = 30) -> list[Received]:
        """Wait for spans."""
        deadline = time.monotonic() + seconds
        while not enough(self.spans):
            assert time.monotonic() < deadline, [span.name for span in self.spans]
            time.sleep(0.02)
        return list(self.spans)


@contextlib.contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """Run a receiver on a port, by default a free one."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(receiver.take(self.path, headers, body))
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

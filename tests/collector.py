"""What collects spans, for tests: it takes them by OTLP over HTTP, and keeps them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """A span as it came; ids are hexadecimal digits, `parent` is empty where there is none."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    links: list[str]
    attributes: dict[str, Any]
    failed: bool
    service: str


class Collector:
    """Takes spans at `url`, unless it is to `refuse` them; `headers` are the last request's."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.headers: dict[str, str] = {}
        self.refuse = False
        self._spans: list[Collected] = []
        self._lock = threading.Lock()

    def spans(self, **wanted: object) -> list[Collected]:
        """Give those that have come, with these fields."""
        with self._lock:
            return [
                one
                for one in self._spans
                if all(getattr(one, name) == value for name, value in wanted.items())
            ]

    def take(self, headers: dict[str, str], body: bytes) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        with self._lock:
            self.headers = headers
            for resource in request.resource_spans:
                service = _attributes(resource.resource.attributes)["service.name"]
                for scope in resource.scope_spans:
                    self._spans += [_collected(span, service) for span in scope.spans]


@contextmanager
def collector() -> Iterator[Collector]:
    """Collect spans until the end of the block; after it nobody listens there."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken = self.path == "/v1/traces" and not collecting.refuse
            if taken:
                collecting.take({name.lower(): one for name, one in self.headers.items()}, body)
            self.send_response(200 if taken else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collecting = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield collecting
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _collected(span: Span, service: str) -> Collected:
    return Collected(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        links=[link.span_id.hex() for link in span.links],
        attributes=_attributes(span.attributes),
        failed=span.status.code == 2,
        service=service,
    )


def _attributes(given: Any) -> dict[str, Any]:
    def plain(one: KeyValue) -> Any:
        return getattr(one.value, one.value.WhichOneof("value") or "string_value")

    return {one.key: plain(one) for one in given}

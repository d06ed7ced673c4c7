"""A collector of OTLP over HTTP on loopback, for tests that look at what a real server tells it."""

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP, `delay_seconds` late."""

    def __init__(self, delay_seconds: float) -> None:
        self.delay_seconds = delay_seconds
        self.scopes: list[ScopeSpans] = []
        self.metrics: set[str] = set()
        super().__init__(("127.0.0.1", 0), _CollectorHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def spans(self) -> list[Span]:
        return [span for scope in self.scopes for span in scope.spans]


class _CollectorHandler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        time.sleep(self.server.delay_seconds)
        raw = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        if self.path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
                self.server.scopes += resource.scope_spans
        if self.path == "/v1/metrics":
            for measured in ExportMetricsServiceRequest.FromString(raw).resource_metrics:
                self.server.metrics |= {metric.name for scope in measured.scope_metrics for metric in scope.metrics}
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def collector(delay_seconds: float = 0) -> Iterator[Collector]:
    with Collector(delay_seconds) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()

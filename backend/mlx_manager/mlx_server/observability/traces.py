"""Tracing with LogFire and OpenTelemetry.

Failures of either, or of a collector, do not affect requests.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mlx_manager.mlx_server import __version__
from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.records import Exchange

if TYPE_CHECKING:
    from logfire import Logfire

logger = logging.getLogger(__name__)

_tracer = trace.get_tracer("mlx-manager", __version__)
_propagator = TraceContextTextMapPropagator()
"""Not OpenTelemetry's global propagator, which also reads baggage; LogFire writes baggage onto each span."""

AttributeValue = str | bool | int | float | Sequence[str]


@dataclass(frozen=True, slots=True)
class Tracing:
    """`enabled`: LogFire is configured. `collected`: LogFire or another collector receives the spans."""

    enabled: bool
    collected: bool
    project_url: Callable[[], str | None] = lambda: None
    """The address of the LogFire project. LogFire's client learns it from its server some time after the start."""

    def trace_url(self, trace_id: str) -> str | None:
        """Where LogFire shows the trace."""
        project = self.project_url()
        query = urlencode({"q": f"trace_id='{trace_id}'"})
        return f"{project}?{query}" if project is not None else None


def instrument(settings: MLXServerSettings) -> Tracing:
    """Configures LogFire if possible. Without a token or a collector, nothing is sent."""
    if not settings.logfire_enabled:
        return Tracing(enabled=False, collected=False)
    if settings.logfire_token is None and not _may_be_configured():
        return Tracing(enabled=True, collected=False)
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", "3")  # seconds; limits the delay of a dead collector at exit
    try:
        configured = _configure_logfire(settings)
        collected = configured.config.token is not None or _has_collector()
        if not collected:
            _configure_logfire(settings, discards=True)
    except Exception as exc:  # telemetry failures must not affect requests
        logger.warning("Tracing is off: LogFire failed to start: %s. Check its configuration, or disable it.", exc)
        return Tracing(enabled=False, collected=False)
    return Tracing(enabled=True, collected=collected, project_url=lambda: configured.config._project_url)


def _configure_logfire(settings: MLXServerSettings, *, discards: bool = False) -> "Logfire":
    """`discards` turns spans and metrics off: a span costs 80 us."""
    import logfire

    return logfire.configure(
        send_to_logfire="if-token-present",
        token=settings.logfire_token.get_secret_value() if settings.logfire_token is not None else None,
        distributed_tracing=True,
        service_name="mlx-manager",
        service_version=__version__,
        console=False,
        inspect_arguments=False,
        sampling=logfire.SamplingOptions(head=0.0) if discards else None,
        metrics=False if discards else None,
    )


def _may_be_configured() -> bool:
    """Whether any configuration of LogFire or OpenTelemetry exists. If not, logfire is not imported."""
    credentials, project = Path(".logfire/logfire_credentials.json"), Path("pyproject.toml")
    try:
        is_in_project = b"tool.logfire" in project.read_bytes()
    except OSError:
        is_in_project = False
    named = any(name.startswith(("LOGFIRE_", "OTEL_")) for name in os.environ)
    return named or is_in_project or credentials.is_file()


def _has_collector() -> bool:
    return any(name.startswith("OTEL_EXPORTER_OTLP") and name.endswith("ENDPOINT") for name in os.environ)


@contextmanager
def request_span(
    exchange: Exchange, headers: Mapping[str, str], attributes: Mapping[str, AttributeValue]
) -> Iterator[None]:
    """Opens the server span of an HTTP request for the block. Its parent is the span in `traceparent`."""
    span = _tracer.start_span(
        exchange.method,
        context=_propagator.extract(headers),
        kind=SpanKind.SERVER,
        attributes={
            "http.request.method": exchange.method,
            "url.path": exchange.path,
            "mlx_manager.request_id": exchange.request_id,
            **attributes,
        },
    )
    if span.is_recording():
        exchange.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
    try:
        with within_span(span):
            yield
    finally:
        _end_request_span(span, exchange)


def _end_request_span(span: Span, exchange: Exchange) -> None:
    if exchange.endpoint != "other":
        span.update_name(f"{exchange.method} {exchange.endpoint}")
        span.set_attribute("http.route", exchange.endpoint)
    if exchange.status is not None:
        span.set_attribute("http.response.status_code", exchange.status)
    failure = exchange.failure
    if failure is not None and not exchange.refused:
        fail_span(span, failure)
    span.end()


def start_span(name: str, attributes: Mapping[str, AttributeValue], began_ns: int | None = None) -> Span:
    """Starts a child of the current span, now or at `began_ns` (Unix time). The caller ends the span."""
    return _tracer.start_span(name, attributes=attributes, start_time=began_ns)


def within_span(span: Span) -> AbstractContextManager[Span]:
    """Makes `span` the parent of spans started in the block and in its tasks."""
    return trace.use_span(span, record_exception=False, set_status_on_exception=False)


class PastSpan(NamedTuple):
    """An ended span. Times are Unix times in nanoseconds."""

    name: str
    began_ns: int
    ended_ns: int
    attributes: Mapping[str, AttributeValue]


def emit_past_spans(spans: Iterable[PastSpan]) -> None:
    """Emits `spans` as children of the current span."""
    for name, began_ns, ended_ns, attributes in spans:
        start_span(name, attributes, began_ns).end(max(began_ns, ended_ns))


def emit_event(name: str, attributes: Mapping[str, AttributeValue]) -> None:
    """Emits an event as a span without duration."""
    start_span(name, attributes).end()


def trace_headers() -> dict[str, str]:
    """The propagation headers that make the current span the parent of an upstream's spans."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


def fail_span(span: Span, error: BaseException) -> None:
    """Marks the span as failed and records the error."""
    span.set_attribute("error.type", type(error).__name__)
    span.record_exception(error)
    span.set_status(trace.StatusCode.ERROR, str(error))

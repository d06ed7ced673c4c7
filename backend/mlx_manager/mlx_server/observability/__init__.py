"""Logs, traces and metrics. The only importer of logfire, OpenTelemetry and prometheus_client.

Whatever is wrong with any of them, or with who collects, the server runs the same.
"""

from mlx_manager.mlx_server.observability.genai_metrics import record_generation
from mlx_manager.mlx_server.observability.logs import configure_logging
from mlx_manager.mlx_server.observability.traces import (
    AttributeValue,
    PastSpan,
    fail_span,
    instrument,
    start_span,
    tell_event,
    tell_past,
    trace_headers,
    within_span,
)

__all__ = [
    "AttributeValue",
    "PastSpan",
    "configure_logging",
    "fail_span",
    "instrument",
    "record_generation",
    "start_span",
    "tell_event",
    "tell_past",
    "trace_headers",
    "within_span",
]

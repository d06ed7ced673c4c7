"""Logs, traces and metrics. The only package that imports logfire, OpenTelemetry and Prometheus.

Failures of these libraries or of a collector do not affect requests.
"""

from mlx_manager.mlx_server.observability.access_log import log_access
from mlx_manager.mlx_server.observability.genai_metrics import record_generation
from mlx_manager.mlx_server.observability.logs import configure_logging, request_log_context, set_log_level
from mlx_manager.mlx_server.observability.metrics import EvictionReason, Metrics, exposition
from mlx_manager.mlx_server.observability.readings import ModelReading, ProcessReading, RankReading, ServerReading
from mlx_manager.mlx_server.observability.recent import RecentRequest, RecentRequests
from mlx_manager.mlx_server.observability.traces import (
    AttributeValue,
    PastSpan,
    Tracing,
    emit_event,
    emit_past_spans,
    fail_span,
    instrument,
    request_span,
    start_span,
    trace_headers,
    within_span,
)

__all__ = [
    "AttributeValue",
    "EvictionReason",
    "Metrics",
    "ModelReading",
    "PastSpan",
    "ProcessReading",
    "RankReading",
    "RecentRequest",
    "RecentRequests",
    "ServerReading",
    "Tracing",
    "configure_logging",
    "emit_event",
    "emit_past_spans",
    "exposition",
    "fail_span",
    "instrument",
    "log_access",
    "record_generation",
    "request_log_context",
    "request_span",
    "set_log_level",
    "start_span",
    "trace_headers",
    "within_span",
]

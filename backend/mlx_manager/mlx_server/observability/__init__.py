"""What can be seen of the server: logs, traces, metrics. The only importer of logfire, OpenTelemetry and Prometheus."""

from mlx_manager.mlx_server.observability.access_log import log_access
from mlx_manager.mlx_server.observability.logs import configure_logging, lines_of
from mlx_manager.mlx_server.observability.metrics import EvictionReason, Metrics, exposition
from mlx_manager.mlx_server.observability.readings import ModelReading, ProcessReading, ServerReading
from mlx_manager.mlx_server.observability.traces import (
    AttributeValue,
    Tracing,
    fail_span,
    instrument,
    request_span,
    start_span,
)

__all__ = [
    "AttributeValue",
    "EvictionReason",
    "Metrics",
    "ModelReading",
    "ProcessReading",
    "ServerReading",
    "Tracing",
    "configure_logging",
    "exposition",
    "fail_span",
    "instrument",
    "lines_of",
    "log_access",
    "request_span",
    "start_span",
]

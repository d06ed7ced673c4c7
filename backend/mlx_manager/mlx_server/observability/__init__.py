"""What can be seen of the server: its logs and its traces. The only importer of logfire and OpenTelemetry."""

from mlx_manager.mlx_server.observability.logs import configure_logging
from mlx_manager.mlx_server.observability.traces import AttributeValue, fail_span, instrument, start_span

__all__ = ["AttributeValue", "configure_logging", "fail_span", "instrument", "start_span"]

"""Logging, and traces with LogFire. The only importer of logfire and OpenTelemetry.

Whatever is wrong with either, or with who collects the traces, the server runs the same.
"""

import logging
import os
from collections.abc import Mapping, Sequence

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.trace import Span

from mlx_manager.mlx_server import __version__
from mlx_manager.mlx_server.config import MLXServerSettings

logger = logging.getLogger(__name__)

_tracer = trace.get_tracer("mlx-manager", __version__)

AttributeValue = str | bool | int | float | Sequence[str]


def configure_logging(level: str) -> None:
    """For the command line; a program that embeds the app configures its own logging."""
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    set_log_level(level)


def set_log_level(level: str) -> None:
    logging.getLogger().setLevel(level)
    for noisy in ("httpx", "sse_starlette", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))


def instrument(app: FastAPI, settings: MLXServerSettings) -> bool:
    """Traces the app's requests with LogFire, if it can. Nothing is sent, and nobody asked, without a token."""
    if not settings.logfire_enabled:
        return False
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", "3")  # seconds that a dead collector may hold up the exit
    try:
        import logfire

        configured = logfire.configure(
            send_to_logfire="if-token-present",
            token=settings.logfire_token.get_secret_value() if settings.logfire_token is not None else None,
            service_name="mlx-manager",
            service_version=__version__,
            console=False,
            inspect_arguments=False,
        )
        logfire.instrument_fastapi(
            app,
            request_attributes_mapper=_no_attributes,
            excluded_urls=_untraced_urls(configured.config.token),
            exclude_spans=["send", "receive"],  # LogFire drops them, after each chunk of a stream has paid for one
        )
    except Exception as exc:  # whatever is wrong with telemetry, requests are served
        logger.warning("LogFire is enabled but cannot be used, going on without it: %s", exc)
        return False
    return True


def _untraced_urls(logfire_token: object) -> list[str]:
    """All of them where neither LogFire nor a collector of OpenTelemetry's receives traces, for HTTP spans are dear."""
    collectors = [name for name in os.environ if name.startswith("OTEL_EXPORTER_OTLP") and name.endswith("ENDPOINT")]
    return ["/health", "/ready"] if logfire_token is not None or collectors else [".*"]


def _no_attributes(request: object, attributes: dict[str, object]) -> None:
    """Request bodies hold prompts, which are nobody else's business."""


def start_span(name: str, attributes: Mapping[str, AttributeValue]) -> Span:
    """A span below the current one, for its owner to end."""
    return _tracer.start_span(name, attributes=attributes)


def fail_span(span: Span, error: BaseException) -> None:
    """Marks the span as failed, with what failed."""
    span.set_attribute("error.type", type(error).__name__)
    span.record_exception(error)
    span.set_status(trace.StatusCode.ERROR, str(error))

"""Logs, spans and metrics of loads, evictions and worker deaths. Does not know their causes."""

import contextlib
import logging
import time
from collections.abc import Iterator

from mlx_manager.mlx_server.errors import ModelLoadFailed, ServerError
from mlx_manager.mlx_server.observability import (
    EvictionReason,
    Metrics,
    emit_event,
    fail_span,
    start_span,
    within_span,
)

logger = logging.getLogger(__name__)


class LoadReport:
    """Measures how long a load waited for a place."""

    def __init__(self) -> None:
        self.waited_seconds = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.waited_seconds = time.monotonic() - began


class PoolReports:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @contextlib.contextmanager
    def load(self, model_id: str) -> Iterator[LoadReport]:
        """Reports the load in the block. Turns every failure into a ServerError for all waiting requests."""
        report = LoadReport()
        logger.info("Loading model: %s", model_id)
        began = time.monotonic()
        span = start_span("model_load", {"gen_ai.request.model": model_id})
        try:
            with within_span(span):
                yield report
        except ServerError as exc:
            logger.error("%s", exc)
            self._metrics.load_failed(model_id)
            fail_span(span, exc)
            raise
        except Exception as exc:
            logger.exception("Loading model %s failed", model_id)
            self._metrics.load_failed(model_id)
            fail_span(span, exc)
            raise ModelLoadFailed(f"Model {model_id!r} cannot be loaded: {exc!r}. Check the server's log.") from exc
        else:
            seconds = time.monotonic() - began - report.waited_seconds
            logger.info("Model loaded: %s (%.1fs, after %.1fs for a place)", model_id, seconds, report.waited_seconds)
            self._metrics.model_loaded(model_id, seconds, report.waited_seconds)
        finally:
            span.set_attribute("mlx_manager.place_wait_seconds", report.waited_seconds)
            span.end()

    def evicted(self, model_id: str, reason: EvictionReason, for_model: str | None = None) -> None:
        """Reports that a model is being unloaded. `for_model` is the model that needs its place."""
        if for_model is not None:
            logger.info("Evicting model %s to load %s", model_id, for_model)
        self._metrics.model_evicted(model_id, reason)
        attributes = {"mlx_manager.evicted_model": model_id, "mlx_manager.eviction_reason": reason}
        emit_event("model_evicted", attributes | ({"gen_ai.request.model": for_model} if for_model else {}))

    def worker_died(self, model_id: str, exit_reason: str) -> None:
        """Reports the unexpected end of a worker."""
        self._metrics.worker_died(model_id)
        emit_event("worker_died", {"gen_ai.request.model": model_id, "mlx_manager.reason": exit_reason})

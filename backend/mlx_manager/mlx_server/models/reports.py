"""What happens to models, told to the log, as spans and to the metrics: loads, departures, deaths. Knows not why."""

import contextlib
import logging
import time
from collections.abc import Iterator

from mlx_manager.mlx_server.errors import ModelLoadFailed, ServerError
from mlx_manager.mlx_server.observability import (
    EvictionReason,
    Metrics,
    fail_span,
    start_span,
    tell_event,
    within_span,
)

logger = logging.getLogger(__name__)


class PoolReports:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @contextlib.contextmanager
    def load(self, model_id: str) -> Iterator[None]:
        """The load that goes on in the block. Whatever fails it becomes a ServerError that all who wait can be told."""
        logger.info("Loading model: %s", model_id)
        began = time.monotonic()
        span = start_span("model_load", {"gen_ai.request.model": model_id})
        try:
            with within_span(span):
                yield
        except ServerError as exc:
            logger.error("%s", exc)
            self._metrics.load_failed(model_id)
            fail_span(span, exc)
            raise
        except Exception as exc:
            logger.exception("Loading model %s failed", model_id)
            self._metrics.load_failed(model_id)
            fail_span(span, exc)
            raise ModelLoadFailed(f"Model {model_id!r} cannot be loaded: {exc!r}") from exc
        else:
            seconds = time.monotonic() - began
            logger.info("Model loaded: %s (%.1fs)", model_id, seconds)
            self._metrics.model_loaded(model_id, seconds)
        finally:
            span.end()

    def leaves(self, model_id: str, reason: EvictionReason, for_model: str | None = None) -> None:
        """A loaded model is let go; `for_model` is the one that needs its place."""
        if for_model is not None:
            logger.info("Evicting model %s to load %s", model_id, for_model)
        self._metrics.model_evicted(model_id, reason)
        attributes = {"mlx_manager.evicted_model": model_id, "mlx_manager.eviction_reason": reason}
        tell_event("model_evicted", attributes | ({"gen_ai.request.model": for_model} if for_model else {}))

    def died(self, model_id: str, epitaph: str) -> None:
        """A model's worker ended unasked."""
        self._metrics.worker_died(model_id)
        tell_event("worker_died", {"gen_ai.request.model": model_id, "mlx_manager.reason": epitaph})

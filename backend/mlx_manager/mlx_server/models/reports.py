"""What happens to models, told to the log and as spans: loads, departures, deaths. Knows nothing of why."""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Literal

from mlx_manager.mlx_server.errors import ModelLoadFailed, ServerError
from mlx_manager.mlx_server.observability import fail_span, start_span, tell_event, within_span

logger = logging.getLogger(__name__)

Reason = Literal["room", "idle", "asked", "shutdown"]
"""Why a model is let go: another one needs its place, nobody used it for long enough, somebody asked for it, or the
server ends.
"""


class PoolReports:
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
            fail_span(span, exc)
            raise
        except Exception as exc:
            logger.exception("Loading model %s failed", model_id)
            fail_span(span, exc)
            raise ModelLoadFailed(f"Model {model_id!r} cannot be loaded: {exc!r}") from exc
        else:
            logger.info("Model loaded: %s (%.1fs)", model_id, time.monotonic() - began)
        finally:
            span.end()

    def leaves(self, model_id: str, reason: Reason, for_model: str | None = None) -> None:
        """A loaded model is let go; `for_model` is the one that needs its place."""
        if for_model is not None:
            logger.info("Evicting model %s to load %s", model_id, for_model)
        attributes = {"mlx_manager.evicted_model": model_id, "mlx_manager.eviction_reason": reason}
        tell_event("model_evicted", attributes | ({"gen_ai.request.model": for_model} if for_model else {}))

    def died(self, model_id: str, epitaph: str) -> None:
        """A model's worker ended unasked."""
        tell_event("worker_died", {"gen_ai.request.model": model_id, "mlx_manager.reason": epitaph})

"""The counters and histograms of `GET /metrics` for requests, generations and models. Names are `mlx_server_*`.

Each request is counted once, at its end, from its `Exchange`; nothing is measured per token. Runs on the event loop.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.core import InfoMetricFamily
from prometheus_client.openmetrics import exposition as open_metrics
from prometheus_client.registry import Collector

from mlx_manager.mlx_server import __version__
from mlx_manager.mlx_server.observability.histograms import Histogram
from mlx_manager.mlx_server.observability.readings import ServerReading, families_of
from mlx_manager.mlx_server.records import Exchange, GenerationRecord

MAX_MODELS = 100
"""Limit of model ids used as labels; further ids become "other"."""
OTHER = "other"

_SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

EvictionReason = Literal["room", "idle", "asked", "shutdown"]


class Metrics:
    """The metrics of one server, in a separate registry."""

    def __init__(self, is_model: Callable[[str], bool]) -> None:
        """`is_model`: whether an id belongs to a model. Other ids do not become labels."""
        prometheus_client.disable_created_metrics()  # an extra `_created` series for each of ours
        self._is_model = is_model
        self._models: set[str] = set()
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Completed HTTP requests.", "endpoint", "model", "status")
        self._durations = self._histogram(
            "request_duration_seconds",
            "Seconds from the arrival of a request to its last byte.",
            _LONG,
            "endpoint",
            "model",
        )
        self._queue = self._histogram("queue_seconds", "Seconds from admission to the first prefill chunk.", _SHORT)
        self._first_tokens = self._histogram(
            "time_to_first_token_seconds", "Seconds from the arrival of a request to its first token.", _SHORT
        )
        self._gaps = self._histogram("inter_token_seconds", "Seconds between sent pieces of an answer.", _GAPS)
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens, including cached tokens.")
        self._cached_tokens = self._counter("cached_tokens", "Prompt tokens served from the prefix cache.")
        self._misses = self._counter(
            "prefix_misses", "Prompts that the prefix cache did not have, by reason.", "model", "reason"
        )
        self._missed_tokens = self._counter(
            "prefix_missed_tokens", "Prompt tokens computed again, by reason.", "model", "reason"
        )
        self._completion_tokens = self._counter("completion_tokens", "Generated tokens.")
        self._ignored_items = self._counter("ignored_input_items", "Ignored input items of unsupported types.")
        self._loads = self._histogram("model_load_seconds", "Duration of successful model loads.", _LONG)
        self._place_waits = self._histogram(
            "model_wait_seconds", "Seconds that model loads waited for a free place.", _LONG
        )
        self._failed_loads = self._counter("model_load_failures", "Failed model loads.")
        self._evictions = self._counter("model_evictions", "Unloaded models, by reason.", "model", "reason")
        self._deaths = self._counter("worker_restarts", "Workers that died unexpectedly and were replaced.")

    def exchange_ended(self, exchange: Exchange) -> None:
        generation = exchange.generation
        model = self._label(generation.model) if generation is not None else ""
        self._requests.labels(exchange.endpoint, model, str(exchange.status)).inc()
        self._durations.observe((exchange.endpoint, model), (exchange.seconds,))
        if generation is not None and generation.admitted is not None:
            self._count_generation(generation, model)

    def model_loaded(self, model_id: str, seconds: float, waited_seconds: float = 0.0) -> None:
        """`seconds` excludes `waited_seconds`, the wait for a free place."""
        label = self._label(model_id)
        self._loads.observe((label,), (seconds,))
        self._place_waits.observe((label,), (waited_seconds,))

    def load_failed(self, model_id: str) -> None:
        self._failed_loads.labels(self._label(model_id)).inc()

    def model_evicted(self, model_id: str, reason: EvictionReason) -> None:
        self._evictions.labels(self._label(model_id), reason).inc()

    def worker_died(self, model_id: str) -> None:
        self._deaths.labels(self._label(model_id)).inc()

    def families(self, reading: ServerReading | None) -> list[Metric]:
        """All counted metrics, and the metrics of `reading`."""
        families = [
            InfoMetricFamily("mlx_server", "Server version.", {"version": __version__}),
            *self._registry.collect(),
        ]
        return families if reading is None else [*families, *families_of(reading, self._label)]

    def _count_generation(self, generation: GenerationRecord, model: str) -> None:
        self._prompt_tokens.labels(model).inc(generation.prompt_tokens)
        self._cached_tokens.labels(model).inc(generation.cached_tokens)
        if generation.miss is not None:
            self._misses.labels(model, generation.miss.reason).inc()
            self._missed_tokens.labels(model, generation.miss.reason).inc(generation.miss.missed_tokens)
        self._completion_tokens.labels(model).inc(generation.completion_tokens)
        self._ignored_items.labels(model).inc(generation.ignored_items)
        self._gaps.observe((model,), generation.output_gaps)
        if generation.prefilled is not None:
            self._queue.observe((model,), (generation.queue_seconds,))
        if generation.time_to_first_output is not None:
            self._first_tokens.observe((model,), (generation.time_to_first_output,))

    def _label(self, model_id: str) -> str:
        """The id if it belongs to a model. Clients may send any id, and labels are never dropped."""
        if model_id not in self._models:
            if len(self._models) >= MAX_MODELS or not self._is_model(model_id):
                return OTHER
            self._models.add(model_id)
        return model_id

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"mlx_server_{name}", documentation, labels if labels else ("model",), registry=self._registry)

    def _histogram(self, name: str, documentation: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
        histogram = Histogram(f"mlx_server_{name}", documentation, labels if labels else ("model",), bounds)
        self._registry.register(histogram)
        return histogram


def exposition(families: Iterable[Metric], accept: str) -> tuple[bytes, str]:
    """The exposition text and its content type: OpenMetrics if `accept` has it, else Prometheus text."""
    collected = _Collected(families)
    if "application/openmetrics-text" in accept:
        text: bytes = open_metrics.generate_latest(collected)
        return text, open_metrics.CONTENT_TYPE_LATEST
    return prometheus_client.generate_latest(collected), prometheus_client.CONTENT_TYPE_LATEST


class _Collected(Collector):
    """Adapts metric families to the `Collector` interface."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

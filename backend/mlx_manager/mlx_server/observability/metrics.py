"""What `GET /metrics` tells of requests, generations and models, counted as they end. Names are `mlx_server_*`.

A request is counted once, when it has ended, from its `Exchange`: nothing is measured here while tokens come. Runs on
the event loop.
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
"""Ids that are labels; those beyond them are "other"."""
OTHER = "other"

_SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

EvictionReason = Literal["room", "idle", "asked", "shutdown"]


class Metrics:
    """One server's, in a registry of its own."""

    def __init__(self, is_model: Callable[[str], bool]) -> None:
        """`is_model` says whether an id is a model's: others do not become labels."""
        prometheus_client.disable_created_metrics()  # a series more for each of ours, that tells when it began
        self._is_model = is_model
        self._models: set[str] = set()
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "HTTP requests that ended.", "endpoint", "model", "status")
        self._durations = self._histogram(
            "request_duration_seconds", "From a request's arrival to its last byte.", _LONG, "endpoint", "model"
        )
        self._queue = self._histogram("queue_seconds", "Wait from admission to the prompt's first chunk.", _SHORT)
        self._first_tokens = self._histogram(
            "time_to_first_token_seconds", "From a request to the first token of its answer.", _SHORT
        )
        self._gaps = self._histogram("inter_token_seconds", "Between the pieces of an answer as they are sent.", _GAPS)
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, the cached ones among them.")
        self._cached_tokens = self._counter("cached_tokens", "Tokens of prompts that were in the prefix cache.")
        self._completion_tokens = self._counter("completion_tokens", "Tokens generated.")
        self._ignored_items = self._counter("ignored_input_items", "Items of input that hosted tools left behind.")
        self._loads = self._histogram("model_load_seconds", "Loads of a model that succeeded.", _LONG)
        self._place_waits = self._histogram(
            "model_wait_seconds", "Waits of a load for a place among the models.", _LONG
        )
        self._failed_loads = self._counter("model_load_failures", "Loads of a model that failed.")
        self._evictions = self._counter("model_evictions", "Models let go, and why.", "model", "reason")
        self._deaths = self._counter("worker_restarts", "Workers that died at work; each is replaced.")

    def exchange_ended(self, exchange: Exchange) -> None:
        generation = exchange.generation
        model = self._label(generation.model) if generation is not None else ""
        self._requests.labels(exchange.endpoint, model, str(exchange.status)).inc()
        self._durations.observe((exchange.endpoint, model), (exchange.seconds,))
        if generation is not None and generation.admitted is not None:
            self._count_generation(generation, model)

    def model_loaded(self, model_id: str, seconds: float, waited_seconds: float = 0.0) -> None:
        """`seconds` without those that the load has waited for a place."""
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
        """All that is counted, and what `reading` found of the running server."""
        families = [InfoMetricFamily("mlx_server", "The server.", {"version": __version__}), *self._registry.collect()]
        return families if reading is None else [*families, *families_of(reading, self._label)]

    def _count_generation(self, generation: GenerationRecord, model: str) -> None:
        self._prompt_tokens.labels(model).inc(generation.prompt_tokens)
        self._cached_tokens.labels(model).inc(generation.cached_tokens)
        self._completion_tokens.labels(model).inc(generation.completion_tokens)
        self._ignored_items.labels(model).inc(generation.ignored_items)
        self._gaps.observe((model,), generation.output_gaps)
        if generation.prefilled is not None:
            self._queue.observe((model,), (generation.queue_seconds,))
        if generation.time_to_first_output is not None:
            self._first_tokens.observe((model,), (generation.time_to_first_output,))

    def _label(self, model_id: str) -> str:
        """The id, when it is a model's: anybody may ask for any, and each label is kept for ever."""
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
    """The text that Prometheus reads, and its content type: OpenMetrics for those who accept it."""
    collected = _Collected(families)
    if "application/openmetrics-text" in accept:
        text: bytes = open_metrics.generate_latest(collected)
        return text, open_metrics.CONTENT_TYPE_LATEST
    return prometheus_client.generate_latest(collected), prometheus_client.CONTENT_TYPE_LATEST


class _Collected(Collector):
    """Families for what writes a registry out."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

"""What is read of the running server when somebody looks: its models, its processes, its upstreams; as metrics."""

from collections import Counter as Sums
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily


@dataclass(frozen=True, slots=True)
class ModelReading:
    """A model that is loaded, or that is waited for. The prefix cache's counts are since its worker began."""

    model_id: str
    running_sequences: int = 0
    waiting_sequences: int = 0
    batch_size: int = 0
    tokens_per_second: float = 0.0
    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    prefix_cache_bytes: int = 0
    mlx_active_bytes: int = 0
    mlx_peak_bytes: int = 0
    mlx_cache_bytes: int = 0
    prefix_cache_hits: int = 0
    prefix_cache_tokens: int = 0
    prefix_cache_evictions: int = 0


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """`process` is `api` or `worker`; `model_id` is the worker's."""

    process: str
    model_id: str
    resident_bytes: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class ServerReading:
    """`upstreams` says of each one's name whether it is up."""

    models: Sequence[ModelReading]
    processes: Sequence[ProcessReading]
    upstreams: dict[str, bool]
    models_loaded: int
    budget_bytes: int
    budget_used_bytes: int
    draining: bool


_GAUGES = {
    "running_sequences": "Generations that decode.",
    "waiting_sequences": "Generations that wait for their turn, or for their model to load.",
    "batch_size": "Rows of the worker's decode batch, as it said last.",
    "tokens_per_second": "Tokens generated per second, over the last second or so.",
    "weights_bytes": "Memory of the model's weights.",
    "kv_cache_bytes": "Memory of the KV caches of running generations, and of a step's own arrays.",
    "prefix_cache_bytes": "Memory of the KV caches that are kept of past prompts.",
    "mlx_active_bytes": "What MLX holds in the worker.",
    "mlx_peak_bytes": "The most that MLX has held in the worker.",
    "mlx_cache_bytes": "Freed memory that MLX keeps for reuse in the worker.",
}
_COUNTERS = {
    "prefix_cache_hits": "Prompts that began with a stored prefix, since the model's worker began.",
    "prefix_cache_tokens": "Tokens of prompts that came from the prefix cache, since the model's worker began.",
    "prefix_cache_evictions": "Stored prefixes that were dropped to make room, since the model's worker began.",
}


def families_of(reading: ServerReading, label: Callable[[str], str]) -> Iterator[Metric]:
    """`label` gives the label of a model's id; models of one label count together."""
    for name, documentation in _GAUGES.items():
        yield _by_model(GaugeMetricFamily(f"mlx_server_{name}", documentation, labels=["model"]), reading, name, label)
    for name, documentation in _COUNTERS.items():
        family = CounterMetricFamily(f"mlx_server_{name}", documentation, labels=["model"])
        yield _by_model(family, reading, name, label)
    yield from _process_families(reading.processes, label)
    upstreams = GaugeMetricFamily("mlx_server_upstream_up", "Whether the upstream answers.", labels=["upstream"])
    for name, up in reading.upstreams.items():
        upstreams.add_metric([name], up)
    yield upstreams
    yield GaugeMetricFamily("mlx_server_models_loaded", "Models loaded.", reading.models_loaded)
    yield GaugeMetricFamily("mlx_server_memory_budget_bytes", "What all models may take.", reading.budget_bytes)
    yield GaugeMetricFamily("mlx_server_memory_used_bytes", "What models keep of it.", reading.budget_used_bytes)
    yield GaugeMetricFamily("mlx_server_draining", "1 while the server shuts down.", reading.draining)


def _by_model(
    family: GaugeMetricFamily | CounterMetricFamily, reading: ServerReading, name: str, label: Callable[[str], str]
) -> Metric:
    sums = Sums[str]()
    for model in reading.models:
        sums[label(model.model_id)] += getattr(model, name)
    for model_label, value in sums.items():
        family.add_metric([model_label], value)
    return family


def _process_families(processes: Sequence[ProcessReading], label: Callable[[str], str]) -> Iterator[Metric]:
    resident, descriptors = Sums[tuple[str, str]](), Sums[tuple[str, str]]()
    for process in processes:
        labels = (process.process, label(process.model_id) if process.model_id else "")
        resident[labels] += process.resident_bytes
        descriptors[labels] += process.descriptors
    for name, documentation, values in (
        ("process_resident_memory_bytes", "Resident memory of the API process and of each model's worker.", resident),
        ("process_open_descriptors", "Open file descriptors of the same.", descriptors),
    ):
        family = GaugeMetricFamily(f"mlx_server_{name}", documentation, labels=["process", "model"])
        for labels, value in values.items():
            family.add_metric(labels, value)
        yield family

"""Metrics read from the running server on each scrape: models, processes and upstreams."""

from collections import Counter as Sums
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily


@dataclass(frozen=True, slots=True)
class ModelReading:
    """A model that is loaded or has waiting requests. Prefix cache counts start with the worker."""

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
    prefix_disk_bytes: int = 0
    prefix_disk_failed: bool = False
    prefix_disk_hits: int = 0
    prefix_disk_tokens: int = 0
    prefix_disk_read_bytes: int = 0
    prefix_disk_read_seconds: float = 0.0
    prefix_disk_written_bytes: int = 0
    prefix_disk_write_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """`process`: `api` or `worker`. `model_id`: the model of a worker, else empty."""

    process: str
    model_id: str
    resident_bytes: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class RankReading:
    """One rank of a model over several processes. Seconds count from its start."""

    model_id: str
    rank: int
    memory_bytes: int
    step_seconds: float
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class ServerReading:
    """`upstreams`: upstream name to whether it is up."""

    models: Sequence[ModelReading]
    processes: Sequence[ProcessReading]
    upstreams: dict[str, bool]
    models_loaded: int
    budget_bytes: int
    budget_used_bytes: int
    draining: bool
    ranks: Sequence[RankReading] = ()


_GAUGES = {
    "running_sequences": "Generations in decode.",
    "waiting_sequences": "Generations waiting for prefill or for their model to load.",
    "batch_size": "Rows in the worker's decode batch, as last reported.",
    "tokens_per_second": "Generated tokens per second, over about one second.",
    "weights_bytes": "Memory of the model's weights.",
    "kv_cache_bytes": "Memory of the KV caches of running generations and of temporary arrays.",
    "prefix_cache_bytes": "Memory of the prefix cache (KV caches of past prompts).",
    "prefix_disk_bytes": "Files of the model's prefixes on disk.",
    "prefix_disk_failed": "1 if a full or failing disk has turned off the prefix cache on disk.",
    "mlx_active_bytes": "Active MLX memory of the worker.",
    "mlx_peak_bytes": "Peak MLX memory of the worker.",
    "mlx_cache_bytes": "Freed memory that MLX keeps for reuse in the worker.",
}
_COUNTERS = {
    "prefix_cache_hits": "Prompts with a cached prefix since worker start.",
    "prefix_cache_tokens": "Prompt tokens served from the prefix cache since worker start.",
    "prefix_cache_evictions": "Cached prefixes evicted to free memory since worker start.",
    "prefix_disk_hits": "Prompts with a prefix read from disk since worker start.",
    "prefix_disk_tokens": "Prompt tokens read from disk since worker start.",
    "prefix_disk_read_bytes": "Bytes of prefixes read from disk since worker start.",
    "prefix_disk_read_seconds": "Time spent reading them.",
    "prefix_disk_written_bytes": "Bytes of prefixes written to disk since worker start.",
    "prefix_disk_write_seconds": "Time spent writing them.",
}


def families_of(reading: ServerReading, label: Callable[[str], str]) -> Iterator[Metric]:
    """`label` maps a model id to its label; values of models with the same label are added."""
    for name, documentation in _GAUGES.items():
        yield _by_model(GaugeMetricFamily(f"mlx_server_{name}", documentation, labels=["model"]), reading, name, label)
    for name, documentation in _COUNTERS.items():
        family = CounterMetricFamily(f"mlx_server_{name}", documentation, labels=["model"])
        yield _by_model(family, reading, name, label)
    yield from _process_families(reading.processes, label)
    yield from _rank_families(reading.ranks, label)
    upstreams = GaugeMetricFamily("mlx_server_upstream_up", "1 if the upstream is up.", labels=["upstream"])
    for name, up in reading.upstreams.items():
        upstreams.add_metric([name], up)
    yield upstreams
    yield GaugeMetricFamily("mlx_server_models_loaded", "Number of loaded models.", reading.models_loaded)
    yield GaugeMetricFamily("mlx_server_memory_budget_bytes", "Memory limit for all models.", reading.budget_bytes)
    yield GaugeMetricFamily(
        "mlx_server_memory_used_bytes", "Memory used by loaded and loading models.", reading.budget_used_bytes
    )
    yield GaugeMetricFamily("mlx_server_draining", "1 while the server shuts down.", reading.draining)


def _by_model(
    family: GaugeMetricFamily | CounterMetricFamily, reading: ServerReading, name: str, label: Callable[[str], str]
) -> Metric:
    sums: defaultdict[str, float] = defaultdict(float)
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
        (
            "process_resident_memory_bytes",
            "Memory of the API process and of each worker: resident, on macOS the footprint with the GPU's.",
            resident,
        ),
        ("process_open_descriptors", "Open file descriptors of the API process and of each worker.", descriptors),
    ):
        family = GaugeMetricFamily(f"mlx_server_{name}", documentation, labels=["process", "model"])
        for labels, value in values.items():
            family.add_metric(labels, value)
        yield family


def _rank_families(ranks: Sequence[RankReading], label: Callable[[str], str]) -> Iterator[Metric]:
    labels = ["model", "rank"]
    memory = GaugeMetricFamily("mlx_server_rank_memory_bytes", "Active MLX memory of each rank.", labels=labels)
    steps = CounterMetricFamily("mlx_server_rank_step_seconds", "Seconds that each rank spent in steps.", labels=labels)
    waits = CounterMetricFamily(
        "mlx_server_rank_wait_seconds", "Seconds that each rank waited between steps for the others.", labels=labels
    )
    for one in ranks:
        for family, value in ((memory, one.memory_bytes), (steps, one.step_seconds), (waits, one.wait_seconds)):
            family.add_metric([label(one.model_id), str(one.rank)], value)
    yield from (memory, steps, waits)

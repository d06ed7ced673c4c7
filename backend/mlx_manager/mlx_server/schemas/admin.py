"""The schemas of the admin API: `GET /admin/pool` and `POST /admin/reload`. Shapes only.

Sizes are bytes, times Unix seconds, durations seconds. Memory and sequences are the worker's last report, at most two
seconds old.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from mlx_manager.mlx_server.kinds import ModelKind
from mlx_manager.mlx_server.types import LoadStage

ModelStatus = Literal[
    "unloaded", "loading", "loaded", "unloading", "restarting", "failed", "not_responding"
]  # failed: its last load failed; the next request tries again


class Budget(BaseModel):
    """The memory limit and use of all loaded and loading models."""

    limit_bytes: int
    used_bytes: int
    """Memory of all workers: weights, KV caches, prefixes and freed buffers; for loading models, their estimate."""
    promised_bytes: int
    """Guaranteed memory of models: weights and the minimum for requests. Models share the rest."""
    max_models: int
    models: int
    """Number of loaded and loading models."""


class ModelMemory(BaseModel):
    """Memory of a worker. `active_bytes` includes weights, KV caches and `prefix_bytes` (KV caches of past prompts).
    `cache_bytes` are freed buffers that MLX keeps. `limit_bytes` is the worker's share of the budget."""

    active_bytes: int
    peak_bytes: int
    cache_bytes: int
    prefix_bytes: int
    limit_bytes: int


class PrefixCacheFigures(BaseModel):
    """Counts since the model was loaded."""

    hits: int
    tokens: int
    evictions: int


class PrefixDiskFigures(BaseModel):
    """The prefix cache on disk, since the model was loaded; all 0 if the settings ask for none."""

    bytes: int
    """Size of the model's files now."""
    hits: int
    tokens: int
    read_bytes: int
    read_seconds: float
    written_bytes: int
    write_seconds: float
    fault: str | None = None
    """Why the disk is no longer used."""


class ModelSequences(BaseModel):
    """Generations: running (in decode), and waiting for prefill, for a free place or for the model to load."""

    running: int
    waiting: int


class LoadProgress(BaseModel):
    """`total_bytes` is 0 while unknown."""

    stage: LoadStage
    done_bytes: int
    total_bytes: int


class WorkerDevice(BaseModel):
    """The compute device of a worker. `memory_bytes` is null on a CPU."""

    backend: Literal["cpu", "metal", "cuda"]
    memory_bytes: int | None
    name: str
    generation: str
    """Generation of the chip, as MLX names it."""


class RankFigures(BaseModel):
    """One of the processes of a model over several. Seconds count from its start."""

    rank: int
    memory_bytes: int
    """Memory that MLX uses."""
    step_seconds: float
    wait_seconds: float
    """Time in which the rank waited for the others between steps."""


class PoolModel(BaseModel):
    """One model of the catalogue. `memory` is null unless the model is loaded."""

    id: str
    kind: ModelKind | None = None
    """Kind of the model, from its files; null before the download."""
    state: ModelStatus
    error: str | None = None
    """Cause of the state failed, restarting or not_responding."""
    progress: LoadProgress | None = None
    """Set while the model loads."""
    size_bytes: int | None = None
    """Memory of the weights: measured at the last load, else from the files; null before the download."""
    memory: ModelMemory | None = None
    prefix_cache: PrefixCacheFigures | None = None
    prefix_disk: PrefixDiskFigures | None = None
    sequences: ModelSequences
    tokens_per_second: float = 0.0
    """Tokens generated in the last second, over all sequences."""
    pinned: bool = False
    ttl: float
    """Idle time before the model is unloaded; -1 keeps it while memory allows."""
    expires_in: float | None = None
    """Time until the idle model is unloaded; null if it is busy or has no limit."""
    loaded_at: float | None = None
    last_used: float | None = None
    pid: int | None = None
    """Process id of the worker."""
    device: WorkerDevice | None = None
    dtype: str | None = None
    """Data type of the computation."""
    ranks: list[RankFigures] = []
    """The ranks that this server has started, for a model over several processes."""


class PoolStatus(BaseModel):
    """The answer of `GET /admin/pool`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "draining": False,
                    "budget": {
                        "limit_bytes": 17179869184,
                        "used_bytes": 12728576,
                        "promised_bytes": 12728576,
                        "max_models": 4,
                        "models": 1,
                    },
                    "models": [
                        {
                            "id": "demo",
                            "kind": "generate",
                            "state": "loaded",
                            "error": None,
                            "progress": None,
                            "size_bytes": 11571432,
                            "memory": {
                                "active_bytes": 12099816,
                                "peak_bytes": 35389440,
                                "cache_bytes": 0,
                                "prefix_bytes": 528384,
                                "limit_bytes": 17179869184,
                            },
                            "prefix_cache": {"hits": 3, "tokens": 96, "evictions": 0},
                            "prefix_disk": {
                                "bytes": 67108864,
                                "hits": 1,
                                "tokens": 2048,
                                "read_bytes": 8388608,
                                "read_seconds": 0.01,
                                "written_bytes": 67108864,
                                "write_seconds": 0.2,
                                "fault": None,
                            },
                            "sequences": {"running": 2, "waiting": 0},
                            "tokens_per_second": 241.0,
                            "pinned": False,
                            "ttl": 300.0,
                            "expires_in": None,
                            "loaded_at": 1795255200.1,
                            "last_used": 1795255260.4,
                            "pid": 4711,
                            "device": {
                                "backend": "metal",
                                "memory_bytes": 51539607552,
                                "name": "Apple M4 Max",
                                "generation": "applegpu_g16s",
                            },
                            "dtype": "bfloat16",
                        }
                    ],
                }
            ]
        }
    )

    draining: bool
    budget: Budget
    models: list[PoolModel]
    """All models of the catalogue, loaded models first."""


class ChangedModels(BaseModel):
    """Changed `[[models]]` entries. Models in `to_load_again` keep their old settings until they are loaded again.
    Removed models take no new requests and are unloaded when idle."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    to_load_again: list[str]


class ReloadReport(BaseModel):
    """The answer of `POST /admin/reload`. Settings in `needs_restart` changed and take effect at the next start."""

    changed: list[str]
    needs_restart: list[str]
    models: ChangedModels

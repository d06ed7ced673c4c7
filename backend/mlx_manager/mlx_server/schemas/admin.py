"""The admin API's shapes: what `GET /admin/pool` tells of the budget and of every model, and a reload. Shapes only.

Bytes are bytes, times are Unix seconds, durations are seconds. Memory and sequences are what the model's worker said
last, at most a second or two ago.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from mlx_manager.mlx_server.kinds import ModelKind

ModelStatus = Literal[
    "unloaded", "loading", "loaded", "unloading", "restarting", "failed", "not_responding"
]  # failed: its last load failed; the next request tries again


class Budget(BaseModel):
    """What loaded models and those that load may take together, and what they take now."""

    limit_bytes: int
    used_bytes: int
    """All that workers hold: weights, KV caches, prefixes and freed buffers; for models that load, what they need."""
    promised_bytes: int
    """What models have at least: their weights and the least that they can work with. The rest is shared among them."""
    max_models: int
    models: int
    """Loaded or loading."""


class ModelMemory(BaseModel):
    """Of a worker, as MLX counts: `active_bytes` has the weights, the KV caches and `prefix_bytes`, which are KV caches
    kept of past prompts; `cache_bytes` are freed buffers that MLX keeps; `limit_bytes` is the worker's share."""

    active_bytes: int
    peak_bytes: int
    cache_bytes: int
    prefix_bytes: int
    limit_bytes: int


class PrefixCacheFigures(BaseModel):
    """Since the model was loaded."""

    hits: int
    tokens: int
    evictions: int


class ModelSequences(BaseModel):
    """Generations: those that decode, and those that wait for prefill, for a place, or for the model to be loaded."""

    running: int
    waiting: int


class LoadProgress(BaseModel):
    """`total_bytes` is 0 while it is not known."""

    stage: Literal["waiting", "downloading", "loading"]
    done_bytes: int
    total_bytes: int


class WorkerDevice(BaseModel):
    """What a worker computes on. `memory_bytes` is None on a CPU."""

    backend: Literal["cpu", "metal", "cuda"]
    memory_bytes: int | None
    name: str
    generation: str
    """Of the chip, as MLX names it."""


class PoolModel(BaseModel):
    """One model of the catalogue. Memory is None when it is not loaded."""

    id: str
    kind: ModelKind | None = None
    """What it does, by its files; None for one not downloaded."""
    state: ModelStatus
    error: str | None = None
    """Why it is failed, restarting or not_responding."""
    progress: LoadProgress | None = None
    """While it is loading."""
    size_bytes: int | None = None
    """Its weights in memory: as measured when it was loaded, else as its files tell; None for one not downloaded."""
    memory: ModelMemory | None = None
    prefix_cache: PrefixCacheFigures | None = None
    sequences: ModelSequences
    tokens_per_second: float = 0.0
    """Generated in the last second, by all of its sequences."""
    pinned: bool = False
    ttl: float
    """How long it stays when it is idle; -1 for as long as there is room."""
    expires_in: float | None = None
    """Until it is unloaded if nobody asks for it; None when it stays or is at work."""
    loaded_at: float | None = None
    last_used: float | None = None
    pid: int | None = None
    """Of its worker process."""
    device: WorkerDevice | None = None
    dtype: str | None = None
    """In which its worker computes."""


class PoolStatus(BaseModel):
    """`GET /admin/pool`."""

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
    """All of the catalogue, the loaded ones first."""


class ChangedModels(BaseModel):
    """`[[models]]` entries. Those in `to_load_again` are loaded, and serve as they are until they are loaded again; a
    removed one takes no more requests, and is unloaded when it is idle."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    to_load_again: list[str]


class ReloadReport(BaseModel):
    """`POST /admin/reload`. What is in `needs_restart` is set differently now, and takes effect at the next start."""

    changed: list[str]
    needs_restart: list[str]
    models: ChangedModels

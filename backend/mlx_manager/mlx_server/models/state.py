"""The state of a model, as the admin API and readiness checks report it, and a load in progress."""

import asyncio
from dataclasses import dataclass
from typing import Literal

from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.hub import Progress
from mlx_manager.mlx_server.models.resident import Resident
from mlx_manager.mlx_server.models.restarts import Crash


@dataclass(frozen=True, slots=True)
class ModelState:
    """The state that a request would find. An evicted model is "ready", because a request loads it again."""

    status: Literal["ready", "loading", "restarting", "failed", "not_responding"]
    error: str | None = None
    crash: Crash | None = None
    progress: Progress | None = None


@dataclass(slots=True)
class Load:
    """A load in progress."""

    entry: ModelEntry
    task: "asyncio.Task[Resident]"
    progress: Progress

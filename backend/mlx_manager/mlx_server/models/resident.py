"""A loaded model of any kind, and the inputs of its load. `loading.py` and `encoders.py` have the kinds."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

from mlx_manager.mlx_server.engine.messages import Launch
from mlx_manager.mlx_server.engine.worker_client import LoadRaised, Supervision, WorkerClient
from mlx_manager.mlx_server.errors import LoadingCrashed, ModelLoadFailed
from mlx_manager.mlx_server.kinds import ModelKind
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.fitness import explain, explain_tokenizer
from mlx_manager.mlx_server.models.kinds import check_kind
from mlx_manager.mlx_server.templates.rendering import TemplateRenderer
from mlx_manager.mlx_server.utils.memory import BYTES_PER_GB

C = TypeVar("C", bound=WorkerClient)
T = TypeVar("T")
R = TypeVar("R", bound="Resident")


@dataclass(slots=True, kw_only=True)
class Resident:
    """A model in memory, with the worker that holds it. Times are Unix seconds.

    `weights_bytes` is the memory that its worker held right after the load. The pool unloads the model after
    `keep_alive_seconds` of idleness; negative means never.
    """

    kind: ClassVar[ModelKind]

    model_id: str
    engine: WorkerClient
    weights_bytes: int
    keep_alive_seconds: float
    loaded_at: float = field(default_factory=time.time)
    last_used: float = field(default_factory=time.time)

    @property
    def size_gb(self) -> float:
        return self.weights_bytes / BYTES_PER_GB

    def touch(self) -> None:
        self.last_used = time.time()


@dataclass(frozen=True, slots=True)
class Loading:
    """The inputs of a load: the model's files, the worker's first message, and the callbacks for the worker."""

    entry: ModelEntry
    folder: Path
    launch: Launch
    supervision: Supervision
    keep_alive_seconds: float
    templates: TemplateRenderer

    async def start(self, client: type[C], read: Callable[[], T]) -> tuple[C, T]:
        """Starts the worker, runs `read` in a thread meanwhile, and returns the worker and the result of `read`.

        Raises ModelLoadFailed, or what `on_device` raises.
        """
        launching = asyncio.create_task(client.launch(self.entry.id, self.launch, self.supervision))
        try:
            tokenizer = await asyncio.to_thread(read)
        except BaseException as exc:
            await _abort(launching)
            if isinstance(exc, Exception):
                raise load_failed(self.entry, explain_tokenizer(exc)) from exc
            raise
        try:
            engine = await launching
        except LoadRaised as exc:
            raise load_failed(self.entry, explain(str(exc))) from exc
        if not engine.alive:  # the worker died while the tokenizer was loading
            raise LoadingCrashed(f"Model {self.entry.id!r} cannot be loaded. {engine.exit_reason} Retry later.")
        return engine, tokenizer


def as_kind(wanted: type[R], model: Resident) -> R:
    """Returns the model. Raises InvalidRequest if it is of another kind."""
    check_kind(model.model_id, model.kind, wanted.kind)
    assert isinstance(model, wanted)
    return model


def load_failed(entry: ModelEntry, reason: str) -> ModelLoadFailed:
    return ModelLoadFailed(f"Model {entry.id!r} cannot be loaded: {reason}", param="model")


async def _abort(launching: "asyncio.Task[C]") -> None:
    """Cancels a launch, and ends the worker if it has started."""
    launching.cancel()
    (outcome,) = await asyncio.gather(launching, return_exceptions=True)
    if isinstance(outcome, WorkerClient):
        await outcome.close()

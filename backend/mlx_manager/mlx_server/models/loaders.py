"""Chooses the loader for each kind of model, and does the parts that all loads share."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from mlx_manager.mlx_server.engine.membership import Membership
from mlx_manager.mlx_server.engine.messages import Device, Launch, Limits, WorkerOptions
from mlx_manager.mlx_server.engine.watchdog import WatchdogLimits
from mlx_manager.mlx_server.engine.worker_client import Supervision, WorkerClient
from mlx_manager.mlx_server.kinds import ModelKind
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.conversion import tokenizer_place
from mlx_manager.mlx_server.models.encoders import load_embedder, load_reranker
from mlx_manager.mlx_server.models.fitness import why_it_cannot_load
from mlx_manager.mlx_server.models.groups import UnusableGroup, memory_here, plan_group
from mlx_manager.mlx_server.models.hub import Progress
from mlx_manager.mlx_server.models.loading import load_generator
from mlx_manager.mlx_server.models.resident import Loading, Resident, load_failed
from mlx_manager.mlx_server.models.tokenization import TOKENIZER_FILE
from mlx_manager.mlx_server.templates.rendering import TemplateRenderer

logger = logging.getLogger(__name__)

LOG_SECONDS = 5.0

LOADERS: dict[ModelKind, Callable[[Loading], Awaitable[Resident]]] = {
    "generate": load_generator,
    "embed": load_embedder,
    "rerank": load_reranker,
}


def estimate_bytes(entry: ModelEntry, folder: Path) -> int:
    """The memory that the weights will need in the worker. Raises ModelLoadFailed for an unloadable model.

    Reads files: call it in a thread.
    """
    reason = why_it_cannot_load(folder, entry.trust_remote_code, entry.adapter, entry.kind_in(folder))
    if reason is not None:
        raise load_failed(entry, reason)
    return memory_here(folder, _membership(entry, folder), dequantize=entry.dequantize)


def _membership(entry: ModelEntry, folder: Path) -> Membership | None:
    try:
        return plan_group(entry, folder)
    except UnusableGroup as exc:
        raise load_failed(entry, str(exc)) from exc


class ModelLoader:
    """Loads each model into its own worker. `options`, `watchdog` and `is_generating` apply to all workers."""

    def __init__(self, options: WorkerOptions, watchdog: WatchdogLimits, is_generating: Callable[[], bool]) -> None:
        self._options = options
        self._watchdog = watchdog
        self._is_generating = is_generating
        self._templates = TemplateRenderer()

    async def load(
        self,
        entry: ModelEntry,
        folder: Path,
        share: Limits,
        progress: Progress,
        keep_alive_seconds: float,
        *,
        on_death: Callable[[WorkerClient], None],
        on_device: Callable[[Device], None],
    ) -> Resident:
        """Raises ModelLoadFailed, or what `on_device` raises (`Supervision`)."""
        progress.stage = "loading"
        tokenizer = await asyncio.to_thread(tokenizer_place, folder, trust_remote_code=entry.trust_remote_code)
        membership = await asyncio.to_thread(_membership, entry, folder)
        launch = Launch(
            kind=await asyncio.to_thread(entry.kind_in, folder),
            folder=str(folder),
            limits=share.shared_by(membership.ranks_here) if membership is not None else share,
            options=self._options,
            adapter=str(entry.adapter) if entry.adapter is not None else None,
            trust_remote_code=entry.trust_remote_code,
            dequantize=entry.dequantize,
            tokenizer_file=str(tokenizer / TOKENIZER_FILE),
            model_id=entry.id,
            prefix_disk=entry.prefix_disk,
            membership=membership,
        )
        supervision = Supervision(
            watchdog=self._watchdog,
            on_death=on_death,
            on_progress=progress.loaded,
            on_device=on_device,
            on_warm_up=progress.warms_up,
            is_generating=self._is_generating,
        )
        return await LOADERS[launch.kind](
            Loading(entry, folder, launch, supervision, keep_alive_seconds, self._templates)
        )

    def close(self) -> None:
        """Ends the processes that render templates, and blocks until they have ended."""
        self._templates.close()


@contextlib.asynccontextmanager
async def logging_progress(model_id: str, progress: Progress) -> AsyncIterator[None]:
    """Logs the progress of the load in the block every few seconds."""

    async def log() -> None:
        while True:
            await asyncio.sleep(LOG_SECONDS)
            done, total = progress.done_bytes / 2**20, progress.total_bytes / 2**20
            logger.info("Model %s is %s: %.0f of %.0f MB", model_id, progress.stage, done, total)

    running = asyncio.create_task(log())
    try:
        yield
    finally:
        running.cancel()

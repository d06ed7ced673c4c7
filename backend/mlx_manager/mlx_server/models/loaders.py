"""Which loader makes each kind of model, and what every load has in common."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from mlx_manager.mlx_server.engine.messages import Launch, Limits, WorkerOptions
from mlx_manager.mlx_server.kinds import ModelKind
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.encoders import load_embedder, load_reranker
from mlx_manager.mlx_server.models.fitness import why_it_cannot_load
from mlx_manager.mlx_server.models.hub import Progress
from mlx_manager.mlx_server.models.loading import load_generator
from mlx_manager.mlx_server.models.resident import Loading, Resident, load_failed
from mlx_manager.mlx_server.models.weights import weights_size

logger = logging.getLogger(__name__)

TELL_SECONDS = 5.0

LOADERS: dict[ModelKind, Callable[[Loading], Awaitable[Resident]]] = {
    "generate": load_generator,
    "embed": load_embedder,
    "rerank": load_reranker,
}


def estimate_bytes(entry: ModelEntry, folder: Path) -> int:
    """What the weights will take in the worker. Raises ModelLoadFailed for a model that cannot be loaded.

    Reads files: call it in a thread.
    """
    reason = why_it_cannot_load(folder, entry.trust_remote_code, entry.adapter, entry.kind_in(folder))
    if reason is not None:
        raise load_failed(entry, reason)
    return weights_size(folder).memory_bytes


def launch_of(entry: ModelEntry, folder: Path, share: Limits, options: WorkerOptions) -> Launch:
    return Launch(
        kind=entry.kind_in(folder),
        folder=str(folder),
        limits=share,
        options=options,
        adapter=str(entry.adapter) if entry.adapter is not None else None,
        trust_remote_code=entry.trust_remote_code,
    )


async def load_model(load: Loading) -> Resident:
    """Raises ModelLoadFailed, or what `on_device` raises."""
    return await LOADERS[load.launch.kind](load)


@contextlib.asynccontextmanager
async def told(model_id: str, progress: Progress) -> AsyncIterator[None]:
    """Tells the log every few seconds how far the load is that goes on in the block."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            done, total = progress.done_bytes / 2**20, progress.total_bytes / 2**20
            logger.info("Model %s is %s: %.0f of %.0f MB", model_id, progress.stage, done, total)

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()

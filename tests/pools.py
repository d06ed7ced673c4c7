"""Pools of real workers for tests, and what tests do with their models."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from mlx_manager.mlx_server.engine.messages import Submit
from mlx_manager.mlx_server.models.budget import Budget
from mlx_manager.mlx_server.models.catalog import Catalog
from mlx_manager.mlx_server.models.pool import LoadedModel, ModelPoolManager
from mlx_manager.mlx_server.types import SamplingParams

GREEDY = SamplingParams(temperature=0, seed=0)


@asynccontextmanager
async def pool_of(
    *folders: Path,
    max_models: int = 4,
    max_memory_gb: float = 8,
    keep_alive_seconds: float = -1,
    request_timeout_seconds: float = 0,
) -> AsyncIterator[ModelPoolManager]:
    catalog = Catalog(str(folders[0]), map(str, folders))
    async with pool_over(catalog, max_models, max_memory_gb, keep_alive_seconds, request_timeout_seconds) as pool:
        yield pool


@asynccontextmanager
async def pool_over(
    catalog: Catalog,
    max_models: int = 4,
    max_memory_gb: float = 8,
    keep_alive_seconds: float = -1,
    request_timeout_seconds: float = 0,
) -> AsyncIterator[ModelPoolManager]:
    """Its workers must be gone when it is closed."""
    pool = ModelPoolManager(
        catalog,
        Budget(int(max_memory_gb * 2**30), max_models, prefix_cache_bytes=2**26),
        keep_alive_seconds=keep_alive_seconds,
        request_timeout_seconds=request_timeout_seconds,
    )
    try:
        yield pool
    finally:
        await pool.cleanup()
    assert not [child for child in psutil.Process().children() if "engine.worker" in " ".join(child.cmdline())]


async def generate(model: LoadedModel, max_tokens: int = 5) -> list[int]:
    tokens: list[int] = []
    async with model.engine.generate([Submit(0, [1, 2], max_tokens, [], GREEDY)]) as sequences:
        async for _, news in sequences:
            tokens += news.token_ids
    return tokens


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0.02)


async def until_unloaded(pool: ModelPoolManager, model_id: str, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while pool.is_loaded(model_id) or pool.is_unloading(model_id):  # noqa: ASYNC110  the pool has no event for it
            await asyncio.sleep(0.02)

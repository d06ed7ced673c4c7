"""The admin endpoints: the state and memory of the pool, load, unload, pin, unpin and reload."""

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, Request

from mlx_manager.mlx_server.api.dependencies import ServerState, State, require
from mlx_manager.mlx_server.api.guard import require_admin
from mlx_manager.mlx_server.api.reload import Reloader
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.facts import read_facts
from mlx_manager.mlx_server.models.pool import ModelPoolManager
from mlx_manager.mlx_server.models.resident import Resident
from mlx_manager.mlx_server.schemas.admin import (
    Budget,
    LoadProgress,
    ModelMemory,
    ModelSequences,
    ModelStatus,
    PoolModel,
    PoolStatus,
    PrefixCacheFigures,
    PrefixDiskFigures,
    RankFigures,
    ReloadReport,
    WorkerDevice,
)
from mlx_manager.mlx_server.schemas.openai import ErrorResponse

router = APIRouter(
    prefix="/admin",
    tags=["admin"],
    dependencies=[Depends(require_admin)],
    responses={
        401: {"model": ErrorResponse, "description": "The admin key is missing or wrong."},
        403: {"model": ErrorResponse, "description": "There are API keys, but no admin key is set."},
        503: {"model": ErrorResponse, "description": "The server is not running, or the model cannot be loaded."},
    },
)
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": ErrorResponse, "description": "There is no such model."}}


@router.get("/pool")
async def pool_status(state: State) -> PoolStatus:
    """The budget, and every model of the catalogue: its state, memory, generations and prefix cache."""
    pool = require(state).pool
    entries = await asyncio.to_thread(_refreshed, pool)
    models = [await _pool_model(pool, entry) for entry in entries]
    holdings = pool.holdings()
    budget = Budget(
        limit_bytes=pool.budget.limit_bytes,
        used_bytes=pool.used_bytes(),
        promised_bytes=sum(holding.nbytes for holding in holdings),
        max_models=pool.budget.max_models,
        models=len(holdings),
    )
    models.sort(key=lambda model: model.memory is None)
    return PoolStatus(draining=pool.draining, budget=budget, models=models)


@router.post("/reload", responses={400: {"model": ErrorResponse, "description": "The settings are invalid."}})
async def reload(request: Request, state: State) -> ReloadReport:
    """Reloads the settings, as SIGHUP does. Invalid settings change nothing. Running requests are not affected."""
    require(state)
    reloader: Reloader = request.app.state.reloader
    return ReloadReport.model_validate(await reloader.reload(), from_attributes=True)


@router.post("/models/{model_id:path}/load", responses=_UNKNOWN)
async def load(model_id: str, state: State) -> PoolModel:
    """Loads the model, and answers when it is loaded. The load continues if the client disconnects."""
    server = require(state)
    model = await server.pool.load(model_id)
    return await _by_id(server, model.model_id)


@router.post("/models/{model_id:path}/unload", responses=_UNKNOWN)
async def unload(model_id: str, state: State) -> PoolModel:
    """Stops the model's worker or its load, and fails its running requests. No effect if the model is not loaded."""
    server = require(state)
    await server.pool.unload_model(model_id)
    return await _by_id(server, model_id)


@router.post("/models/{model_id:path}/pin", responses=_UNKNOWN)
async def pin(model_id: str, state: State) -> PoolModel:
    """Keeps the model loaded: neither another model nor idle time unloads it."""
    server = require(state)
    server.pool.pin(model_id)
    return await _by_id(server, model_id)


@router.post("/models/{model_id:path}/unpin", responses=_UNKNOWN)
async def unpin(model_id: str, state: State) -> PoolModel:
    server = require(state)
    server.pool.pin(model_id, pinned=False)
    return await _by_id(server, model_id)


def _refreshed(pool: ModelPoolManager) -> list[ModelEntry]:
    """The catalogue, and the models outside of it that are being downloaded."""
    pool.catalog.refresh()
    entries = {entry.id: entry for entry in pool.catalog}
    return [*entries.values(), *(entry for entry, _ in pool.loads() if entry.id not in entries)]


async def _by_id(server: ServerState, model_id: str) -> PoolModel:
    return await _pool_model(server.pool, server.pool.catalog.resolve(model_id))


async def _pool_model(pool: ModelPoolManager, entry: ModelEntry) -> PoolModel:
    facts, kind = await asyncio.to_thread(lambda: (read_facts(entry), entry.kind))
    model, found = pool.loaded(entry.id), pool.state(entry.id)
    row = PoolModel(
        id=entry.id,
        kind=kind,
        state=_status(pool, entry.id),
        error=found.error,
        progress=LoadProgress(**asdict(found.progress)) if found.progress is not None else None,
        size_bytes=facts.size_bytes if facts is not None else None,
        sequences=sequences_of(pool, entry.id),
        pinned=pool.is_pinned(entry.id),
        ttl=pool.keep_alive_seconds(entry),
        expires_in=pool.expires_in_seconds(entry.id),
    )
    return row.model_copy(update=_of_worker(model)) if model is not None else row


def sequences_of(pool: ModelPoolManager, model_id: str) -> ModelSequences:
    """The running generations, by the worker's last heartbeat, and the waiting ones."""
    model, admitted = pool.loaded(model_id), pool.admission.admitted(model_id)
    running = min(admitted, model.engine.stats.running) if model is not None else 0
    return ModelSequences(running=running, waiting=admitted - running)


def _of_worker(model: Resident) -> dict[str, object]:
    stats = model.engine.stats
    return {
        "size_bytes": model.weights_bytes,
        "memory": ModelMemory(
            active_bytes=stats.active_bytes,
            peak_bytes=stats.peak_bytes,
            cache_bytes=stats.cache_bytes,
            prefix_bytes=stats.prefix_bytes,
            limit_bytes=model.engine.limits.memory_bytes,
        ),
        "prefix_cache": PrefixCacheFigures(
            hits=stats.prefix_hits, tokens=stats.prefix_tokens, evictions=stats.prefix_evictions
        ),
        "prefix_disk": PrefixDiskFigures(
            bytes=stats.disk_bytes,
            hits=stats.disk_hits,
            tokens=stats.disk_tokens,
            read_bytes=stats.disk_read_bytes,
            read_seconds=stats.disk_read_seconds,
            written_bytes=stats.disk_written_bytes,
            write_seconds=stats.disk_write_seconds,
            fault=stats.disk_fault or None,
        ),
        "tokens_per_second": model.engine.tokens_per_second,
        "loaded_at": model.loaded_at,
        "last_used": model.last_used,
        "pid": model.engine.pid,
        "device": WorkerDevice.model_validate(model.engine.device, from_attributes=True),
        "dtype": model.engine.dtype,
        "ranks": [
            RankFigures(
                rank=rank,
                memory_bytes=one.active_bytes,
                step_seconds=one.step_seconds,
                wait_seconds=one.wait_seconds,
            )
            for rank, one in model.engine.rank_stats.items()
        ],
    }


def _status(pool: ModelPoolManager, model_id: str) -> ModelStatus:
    status = pool.state(model_id).status
    if status != "ready":
        return status
    if pool.is_loaded(model_id):
        return "loaded"
    return "unloading" if pool.is_unloading(model_id) else "unloaded"

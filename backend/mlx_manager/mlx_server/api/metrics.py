"""GET /metrics for Prometheus. Reads the pool, the upstreams and the processes; `observability/` writes the format."""

import asyncio
import os

import psutil
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from mlx_manager.mlx_server.api.admin import sequences_of
from mlx_manager.mlx_server.api.dependencies import ServerState, State
from mlx_manager.mlx_server.models.pool import ModelPoolManager
from mlx_manager.mlx_server.observability import (
    Metrics,
    ModelReading,
    ProcessReading,
    RankReading,
    ServerReading,
    exposition,
)
from mlx_manager.mlx_server.utils import macos

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=PlainTextResponse)
async def read_metrics(request: Request, state: State) -> Response:
    """Requests, tokens, latencies, models and memory in Prometheus' text format, or in OpenMetrics if accepted."""
    metrics: Metrics = request.app.state.metrics
    families = metrics.families(await _read_server(state) if state is not None else None)
    text, content_type = await asyncio.to_thread(exposition, families, request.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type})


async def _read_server(server: ServerState) -> ServerReading:
    pool = server.pool
    loaded = [model for model_id in pool.get_loaded_models() if (model := pool.loaded(model_id)) is not None]
    workers = {model.engine.pid: model.model_id for model in loaded}
    processes = await asyncio.to_thread(_read_processes, workers)
    return ServerReading(
        models=[read_model(pool, model_id) for model_id in models_in_use(pool)],
        processes=processes,
        upstreams={upstream.name: upstream.status == "ready" for upstream in server.upstreams.health()},
        models_loaded=len(pool.get_loaded_models()),
        budget_bytes=pool.budget.limit_bytes,
        budget_used_bytes=pool.used_bytes(),
        draining=pool.draining,
        ranks=[
            RankReading(model.model_id, rank, stats.active_bytes, stats.step_seconds, stats.wait_seconds)
            for model in loaded
            for rank, stats in model.engine.rank_stats.items()
        ],
    )


def models_in_use(pool: ModelPoolManager) -> list[str]:
    """Ids of the loaded models, and of those that requests wait for."""
    waited_for = [entry.id for entry in pool.catalog if pool.admission.admitted(entry.id) > 0]
    return list(dict.fromkeys([*pool.get_loaded_models(), *waited_for]))


def read_model(pool: ModelPoolManager, model_id: str) -> ModelReading:
    model, sequences = pool.loaded(model_id), sequences_of(pool, model_id)
    if model is None:
        return ModelReading(model_id, sequences.running, sequences.waiting)
    stats = model.engine.stats
    return ModelReading(
        model_id,
        sequences.running,
        sequences.waiting,
        batch_size=stats.running,
        tokens_per_second=model.engine.tokens_per_second,
        weights_bytes=model.weights_bytes,
        kv_cache_bytes=max(0, stats.active_bytes - stats.prefix_bytes - model.weights_bytes),
        prefix_cache_bytes=stats.prefix_bytes,
        mlx_active_bytes=stats.active_bytes,
        mlx_peak_bytes=stats.peak_bytes,
        mlx_cache_bytes=stats.cache_bytes,
        prefix_cache_hits=stats.prefix_hits,
        prefix_cache_tokens=stats.prefix_tokens,
        prefix_cache_evictions=stats.prefix_evictions,
        prefix_disk_bytes=stats.disk_bytes,
        prefix_disk_failed=bool(stats.disk_fault),
        prefix_disk_hits=stats.disk_hits,
        prefix_disk_tokens=stats.disk_tokens,
        prefix_disk_read_bytes=stats.disk_read_bytes,
        prefix_disk_read_seconds=stats.disk_read_seconds,
        prefix_disk_written_bytes=stats.disk_written_bytes,
        prefix_disk_write_seconds=stats.disk_write_seconds,
    )


def _read_processes(workers: dict[int, str]) -> list[ProcessReading]:
    """Reads /proc or its like, so it runs in a thread. `workers` maps process ids to models; dead ones are left out."""
    readings, mac = [], macos.this_mac()
    for pid, model_id in {os.getpid(): "", **workers}.items():
        try:
            process = psutil.Process(pid)
            resident_bytes, descriptors = process.memory_info().rss, process.num_fds()
            footprint_bytes = mac.footprint_bytes(pid) if mac is not None else None
        except psutil.Error:
            continue
        readings.append(
            ProcessReading("worker" if model_id else "api", model_id, footprint_bytes or resident_bytes, descriptors)
        )
    return readings

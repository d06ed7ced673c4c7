"""Is the process there (`/health`), and can it answer (`/ready`)?"""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from mlx_manager.mlx_server import __version__
from mlx_manager.mlx_server.api.dependencies import State

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy", "version": __version__}


@router.get("/ready")
async def ready(state: State) -> JSONResponse:
    """503 while the default model has no worker, unless it made room for another and comes back when asked for."""
    if state is None:
        return JSONResponse({"status": "not_running"}, 503)
    pool, model_id = state.pool, state.pool.catalog.default_id
    if pool.is_loading(model_id):
        return JSONResponse({"status": "loading", "model": model_id}, 503)
    failure = pool.failure(model_id)
    if failure is not None:
        return JSONResponse({"status": "failed", "model": model_id, "error": failure.message}, 503)
    return JSONResponse({"status": "ready", "model": model_id})

"""GET /v1/models and /v1/models/{id}: what is loaded and what can be."""

from fastapi import APIRouter

from mlx_manager.mlx_server.api.dependencies import State, require
from mlx_manager.mlx_server.schemas.openai import ModelInfo, ModelListResponse

router = APIRouter(tags=["models"])


@router.get("/models")
async def list_models(state: State) -> ModelListResponse:
    server = require(state)
    return ModelListResponse(data=[ModelInfo(id=entry.id, created=server.started_at) for entry in server.pool.catalog])


@router.get("/models/{model_id:path}")
async def retrieve_model(model_id: str, state: State) -> ModelInfo:
    server = require(state)
    return ModelInfo(id=server.pool.catalog.resolve(model_id).id, created=server.started_at)

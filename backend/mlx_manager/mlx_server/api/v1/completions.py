"""POST /v1/completions."""

from fastapi import APIRouter, Request, Response

from mlx_manager.mlx_server.api.dependencies import State
from mlx_manager.mlx_server.api.reading import JsonRoute
from mlx_manager.mlx_server.api.respond import answer
from mlx_manager.mlx_server.schemas.openai import CompletionRequest, CompletionResponse

router = APIRouter(tags=["completions"], route_class=JsonRoute)


@router.post("/completions", response_model=CompletionResponse)
async def create_completion(body: CompletionRequest, request: Request, state: State) -> Response:
    return await answer(body, request, state)

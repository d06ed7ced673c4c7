"""POST /v1/chat/completions."""

from fastapi import APIRouter, Request, Response

from mlx_manager.mlx_server.api.dependencies import State
from mlx_manager.mlx_server.api.reading import JsonRoute
from mlx_manager.mlx_server.api.respond import answer
from mlx_manager.mlx_server.schemas.openai import ChatCompletionRequest, ChatCompletionResponse

router = APIRouter(tags=["chat"], route_class=JsonRoute)


@router.post("/chat/completions", response_model=ChatCompletionResponse)
async def create_chat_completion(body: ChatCompletionRequest, request: Request, state: State) -> Response:
    return await answer(body, request, state)

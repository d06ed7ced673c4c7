"""POST /v1/messages and /v1/messages/count_tokens."""

from fastapi import APIRouter, Request, Response

from mlx_manager.mlx_server.api.dependencies import State
from mlx_manager.mlx_server.api.reading import JsonRoute
from mlx_manager.mlx_server.api.respond import answer, count_tokens
from mlx_manager.mlx_server.schemas.anthropic import CountTokensRequest, MessagesRequest, MessagesResponse, TokenCount

router = APIRouter(tags=["messages"], route_class=JsonRoute)


@router.post("/messages", response_model=MessagesResponse)
async def create_message(body: MessagesRequest, request: Request, state: State) -> Response:
    return await answer(body, request, state)


@router.post("/messages/count_tokens")
async def count_message_tokens(body: CountTokensRequest, request: Request, state: State) -> TokenCount:
    """The number of prompt tokens of the same body in /v1/messages."""
    return TokenCount(input_tokens=await count_tokens(body, request, state))

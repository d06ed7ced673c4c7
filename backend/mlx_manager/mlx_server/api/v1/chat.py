"""POST /v1/chat/completions."""

from fastapi import APIRouter, Request, Response

from mlx_manager.mlx_server.api.dependencies import State, require
from mlx_manager.mlx_server.api.exchange import exchange_of
from mlx_manager.mlx_server.api.respond import respond
from mlx_manager.mlx_server.protocols.chat import ChatBuilder, to_request
from mlx_manager.mlx_server.schemas.openai import ChatCompletionRequest, ChatCompletionResponse
from mlx_manager.mlx_server.services.tracing import traced

router = APIRouter(tags=["chat"])


@router.post("/chat/completions", response_model=ChatCompletionResponse)
async def create_chat_completion(body: ChatCompletionRequest, request: Request, state: State) -> Response:
    server = require(state)
    chat = to_request(body, server.settings.default_max_tokens, server.settings.reject_unknown_fields)
    exchange_of(request).generation = chat.record
    events = traced(server.inference.generate(chat), chat, body.stream)
    return await respond(request, events, ChatBuilder(chat), body.stream)

"""POST /v1/chat/completions."""

from fastapi import APIRouter, Request, Response

from mlx_manager.mlx_server.api.dependencies import State, require
from mlx_manager.mlx_server.api.exchange import note_generation
from mlx_manager.mlx_server.api.reading import JsonRoute, converted
from mlx_manager.mlx_server.api.respond import respond
from mlx_manager.mlx_server.protocols.chat import ChatBuilder, to_request
from mlx_manager.mlx_server.schemas.openai import ChatCompletionRequest, ChatCompletionResponse

router = APIRouter(tags=["chat"], route_class=JsonRoute)


@router.post("/chat/completions", response_model=ChatCompletionResponse)
async def create_chat_completion(body: ChatCompletionRequest, request: Request, state: State) -> Response:
    server = require(state)
    settings = server.settings
    chat = await converted(request, to_request, body, settings.default_max_tokens, settings.reject_unknown_fields)
    note_generation(request, chat, body.stream)
    events = server.inference.generate(chat)
    return await respond(request, events, ChatBuilder(chat), body.stream)

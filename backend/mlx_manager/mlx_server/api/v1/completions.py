"""POST /v1/completions."""

from fastapi import APIRouter, Request, Response

from mlx_manager.mlx_server.api.dependencies import State, require
from mlx_manager.mlx_server.api.exchange import note_generation
from mlx_manager.mlx_server.api.reading import JsonRoute, converted
from mlx_manager.mlx_server.api.respond import respond
from mlx_manager.mlx_server.protocols.completions import CompletionBuilder, to_request
from mlx_manager.mlx_server.schemas.openai import CompletionRequest, CompletionResponse

router = APIRouter(tags=["completions"], route_class=JsonRoute)


@router.post("/completions", response_model=CompletionResponse)
async def create_completion(body: CompletionRequest, request: Request, state: State) -> Response:
    server = require(state)
    completion = await converted(request, to_request, body, server.settings.reject_unknown_fields)
    note_generation(request, completion, body.stream)
    events = server.inference.generate(completion)
    return await respond(request, events, CompletionBuilder(completion), body.stream)

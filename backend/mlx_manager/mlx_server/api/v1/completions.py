"""POST /v1/completions."""

from fastapi import APIRouter, Request, Response

from mlx_manager.mlx_server.api.dependencies import State, require
from mlx_manager.mlx_server.api.exchange import exchange_of
from mlx_manager.mlx_server.api.respond import respond
from mlx_manager.mlx_server.protocols.completions import CompletionBuilder, to_request
from mlx_manager.mlx_server.schemas.openai import CompletionRequest, CompletionResponse
from mlx_manager.mlx_server.services.tracing import traced

router = APIRouter(tags=["completions"])


@router.post("/completions", response_model=CompletionResponse)
async def create_completion(body: CompletionRequest, request: Request, state: State) -> Response:
    server = require(state)
    completion = to_request(body, server.settings.reject_unknown_fields)
    exchange_of(request).generation = completion.record
    events = traced(server.inference.generate(completion), completion, body.stream)
    return await respond(request, events, CompletionBuilder(completion), body.stream)

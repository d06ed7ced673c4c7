"""Gives the routes the state of the running server: None without a lifespan, so that handlers answer 503."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.errors import NotReady
from mlx_manager.mlx_server.models.pool import ModelPoolManager
from mlx_manager.mlx_server.services.embedding import EmbeddingService
from mlx_manager.mlx_server.services.inference import InferenceService
from mlx_manager.mlx_server.services.response_store import ResponseStore
from mlx_manager.mlx_server.services.upstreams.registry import Upstreams


@dataclass(frozen=True, slots=True)
class ServerState:
    """The objects that the lifespan builds, at `app.state.server`. `started_at` is in Unix seconds."""

    settings: MLXServerSettings
    pool: ModelPoolManager
    upstreams: Upstreams
    inference: InferenceService
    responses: ResponseStore
    embedding: EmbeddingService
    started_at: int


async def server_state(request: Request) -> ServerState | None:
    """None without a lifespan: raising here would hide errors in the request's body.

    It is async because FastAPI runs sync dependencies in threads.
    """
    return getattr(request.app.state, "server", None)


State = Annotated[ServerState | None, Depends(server_state)]


def require(state: ServerState | None) -> ServerState:
    if state is None:
        raise NotReady("The server is not running: it is starting or shutting down. Retry later.")
    return state

"""What the routes get from the running server. Without a lifespan there is nothing to get, and handlers refuse."""

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
    """All that the lifespan builds, on `app.state.server` while it runs. `started_at` is in Unix seconds."""

    settings: MLXServerSettings
    pool: ModelPoolManager
    upstreams: Upstreams
    inference: InferenceService
    responses: ResponseStore
    embedding: EmbeddingService
    started_at: int


async def server_state(request: Request) -> ServerState | None:
    """None without a lifespan: a dependency that raised would hide what is wrong with the request's body.

    It is async because FastAPI runs the others in threads.
    """
    return getattr(request.app.state, "server", None)


State = Annotated[ServerState | None, Depends(server_state)]


def require(state: ServerState | None) -> ServerState:
    if state is None:
        raise NotReady("The server is not running: it has not been started, or it is shutting down.")
    return state

"""The pool and services of the running lifespan, for programs that embed the server. Module-level state by design."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_manager.mlx_server.errors import NotReady
from mlx_manager.mlx_server.types import ChatRequest, CompletionRequest, GenerationEvents

if TYPE_CHECKING:
    from mlx_manager.mlx_server.models.pool import ModelPoolManager


@dataclass(frozen=True, slots=True)
class Running:
    """The pool, and the functions that `services/inference.py` needs for its entry points."""

    pool: "ModelPoolManager"
    generate: Callable[[ChatRequest | CompletionRequest], GenerationEvents]
    default_max_tokens: Callable[[], int]


_running: Running | None = None


def get_running() -> Running:
    """Raises NotReady outside a lifespan."""
    if _running is None:
        raise NotReady("No server is running in this process. Start the app's lifespan first.")
    return _running


def get_model_pool() -> "ModelPoolManager":
    """The pool of the running lifespan. Raises NotReady outside a lifespan."""
    return get_running().pool


def set_running(running: Running | None) -> None:
    """Only the lifespan calls this."""
    global _running
    _running = running

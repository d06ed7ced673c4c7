"""The pool of the running lifespan, for programs that embed the server."""

from typing import TYPE_CHECKING

from mlx_manager.mlx_server.errors import NotReady

if TYPE_CHECKING:
    from mlx_manager.mlx_server.models.pool import ModelPoolManager

_running_pool: "ModelPoolManager | None" = None


def get_model_pool() -> "ModelPoolManager":
    """The pool of the running lifespan, for programs that embed the server. Raises NotReady outside of one."""
    if _running_pool is None:
        raise NotReady("No model pool is running: enter the app's lifespan first.")
    return _running_pool


def set_running_pool(pool: "ModelPoolManager | None") -> None:
    """For the lifespan alone."""
    global _running_pool
    _running_pool = pool

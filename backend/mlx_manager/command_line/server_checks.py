"""The checks of `doctor` that depend on the settings: memory budget, port, and model folders."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mlx_manager.command_line.check import Check
from mlx_manager.command_line.connection import Server, local_root
from mlx_manager.command_line.console import CommandFailed, format_bytes
from mlx_manager.command_line.models import of_settings
from mlx_manager.mlx_server import machine
from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.utils import mlx_backend
from mlx_manager.mlx_server.utils.listening import listen
from mlx_manager.mlx_server.utils.memory import BYTES_PER_GB

HEALTH_SECONDS = 5
WANTED_DISK_BYTES = 5 * 1024**3


def checks(settings: MLXServerSettings) -> Iterator[Check]:
    yield _budget(settings)
    yield _port(settings)
    yield _hub_cache()
    yield _default_model()


def _budget(settings: MLXServerSettings) -> Check:
    """The memory budget of the models, if workers use the machine's own memory."""
    budget, limit = int(settings.max_memory_gb * BYTES_PER_GB), machine.memory_bytes()
    found = f"models may take {format_bytes(budget)}"
    if budget > limit and mlx_backend.build_in_place() in (None, "mlx-cpu", "mlx-metal"):
        remedy = f"set MLX_SERVER_MAX_MEMORY_GB below {limit / BYTES_PER_GB:.1f}"
        return Check("model memory", "warning", f"{found}, the machine or container has {format_bytes(limit)}", remedy)
    return Check("model memory", "ok", found)


def _port(settings: MLXServerSettings) -> Check:
    address = f"{settings.host}:{settings.port}"
    try:
        listeners = listen(settings.host, settings.port)
    except OSError as exc:
        return _port_taken(settings, exc)
    for listener in listeners:
        listener.close()
    return Check("port", "ok", f"{address} is free")


def _port_taken(settings: MLXServerSettings, exc: OSError) -> Check:
    """A port in use is ok if this project's server uses it."""
    address = f"{settings.host}:{settings.port}"
    try:
        health = Server(local_root(settings.host, settings.port)).get("/health", HEALTH_SECONDS)
        return Check("port", "ok", f"a server runs at {address} (version {health['version']})")
    except (CommandFailed, KeyError, TypeError):
        return Check("port", "broken", f"{address}: {exc.strerror}", "mlx-manager serve --port 8001, or --host")


def _hub_cache() -> Check:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    existing = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return Check("model folder", "broken", f"{existing} cannot be written", "set HF_HOME to a writable folder")
    free = shutil.disk_usage(existing).free
    found = f"{folder}, {format_bytes(free)} free"
    if free < WANTED_DISK_BYTES:
        return Check("model folder", "warning", found, "free some disk space, or set HF_HOME to a larger disk")
    return Check("model folder", "ok", found)


def _default_model() -> Check:
    model = of_settings()[0]
    if model.size_bytes is None:
        return Check("default model", "ok", f"{model.id}, which the first start downloads")
    found = f"{model.id}, {format_bytes(model.size_bytes)}"
    if model.size_bytes == 0:
        return Check("default model", "broken", f"{model.id} has no weights", "name a folder with model.safetensors")
    if model.fits is False:
        return Check(
            "default model",
            "broken",
            f"{found}: too large",
            "choose a smaller model, or raise MLX_SERVER_MAX_MEMORY_GB",
        )
    return Check("default model", "ok", found)

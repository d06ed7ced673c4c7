"""Starts worker processes: their command line, their environment, and the socket that joins them to the API process."""

import asyncio
import os
import socket
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import mlx_manager
from mlx_manager.mlx_server.errors import ModelLoadFailed
from mlx_manager.mlx_server.utils.mlx_backend import computes_on_cpu, why_mlx_cannot_run

_OPENBLAS_PLACES = (
    "usr/lib/*-linux-gnu/openblas-pthread/libopenblas.so.0",
    "usr/lib/*-linux-gnu/libopenblas.so.0",
    "usr/lib64/libopenblas.so.0",
    "usr/lib/libopenblas.so.0",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What a worker is told: its share of the machine, and how to load its model. The prefix cache is off at 0 bytes.

    `buffer_limit_bytes` is freed memory that MLX may keep for reuse.
    """

    memory_limit_bytes: int
    prefix_cache_bytes: int
    buffer_limit_bytes: int = 2**29
    inter_token_latency_ms: int = 100
    wire_memory: bool = False
    adapter: Path | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Worker:
    """A started worker process and the API's end of its socket."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def launch_worker(model_path: Path, options: EngineOptions) -> Worker:
    """Starts a worker in a session of its own, so that Ctrl-C in a terminal reaches the API process alone.

    Raises ModelLoadFailed where MLX has no backend.
    """
    fault = why_mlx_cannot_run()
    if fault is not None:
        raise ModelLoadFailed(fault)
    ours, theirs = socket.socketpair()
    try:
        process = await asyncio.create_subprocess_exec(
            *worker_command(theirs.fileno(), model_path, options),
            env=worker_environment(),
            pass_fds=(theirs.fileno(),),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    reader, writer = await asyncio.open_connection(sock=ours)
    return Worker(process, reader, writer)


def worker_command(socket_fd: int, model_path: Path, options: EngineOptions) -> list[str]:
    """The one place that knows how a worker is started."""
    command = [sys.executable, "-m", "mlx_manager.mlx_server.engine.worker"]
    command += ["--socket-fd", str(socket_fd), "--model", str(model_path)]
    for option in fields(options):
        value, name = getattr(options, option.name), f"--{option.name.replace('_', '-')}"
        if value is True:
            command.append(name)
        elif value is not None and value is not False:
            command += [name, str(value)]
    return command


def worker_environment() -> dict[str, str]:
    """Ours, plus the way to this package, and OpenBLAS in place of the slow BLAS that MLX's Linux CPU build brings."""
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    _prepend(environment, "PYTHONPATH", str(Path(mlx_manager.__file__).parent.parent))
    openblas = _find_openblas()
    if openblas is not None:
        _prepend(environment, "LD_PRELOAD", str(openblas))
    return environment


def _prepend(environment: dict[str, str], name: str, entry: str) -> None:
    environment[name] = os.pathsep.join([entry, *filter(None, [environment.get(name)])])


def _find_openblas() -> Path | None:
    if not computes_on_cpu():
        return None
    return next((path for place in _OPENBLAS_PLACES for path in Path("/").glob(place)), None)

"""Starts worker processes: command line, environment, and the socket to the API process. Knows no models."""

import asyncio
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import mlx_manager
from mlx_manager.mlx_server.engine.messages import Launch, encode_down
from mlx_manager.mlx_server.errors import ModelLoadFailed
from mlx_manager.mlx_server.utils.mlx_backend import computes_on_cpu, why_mlx_cannot_run

_OPENBLAS_PLACES = (
    "usr/lib/*-linux-gnu/openblas-pthread/libopenblas.so.0",
    "usr/lib/*-linux-gnu/libopenblas.so.0",
    "usr/lib64/libopenblas.so.0",
    "usr/lib/libopenblas.so.0",
)


@dataclass(frozen=True, slots=True)
class Worker:
    """A started worker process and the API's end of its socket."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def launch_worker(launch: Launch) -> Worker:
    """Starts a worker in its own session, so that Ctrl-C in a terminal reaches only the API process.

    The worker's end of the socket is its stdin: on macOS uvloop then uses posix_spawn, and would fork for any other
    inherited descriptor. Raises ModelLoadFailed if MLX has no backend.
    """
    fault = why_mlx_cannot_run()
    if fault is not None:
        raise ModelLoadFailed(fault)
    ours, theirs = socket.socketpair()
    try:
        process = await asyncio.create_subprocess_exec(
            *worker_command(),
            env=worker_environment(),
            stdin=theirs.fileno(),
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
    writer.write(encode_down(launch))
    return Worker(process, reader, writer)


def worker_command() -> list[str]:
    """The command of a worker; everything else is sent over the socket on its stdin."""
    return [sys.executable, "-m", "mlx_manager.mlx_server.engine.worker"]


def worker_environment() -> dict[str, str]:
    """Our environment, this package on PYTHONPATH, and OpenBLAS in place of the slow BLAS of MLX's Linux CPU build."""
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

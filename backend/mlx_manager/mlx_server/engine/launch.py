"""Starts worker processes: command line, environment, and the socket to the API process. Knows no models."""

import asyncio
import os
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx_manager
from mlx_manager.mlx_server.engine.membership import RankHost
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


SSH_COMMAND = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5")
"""Asks for no password: a host needs a key that the server's user can use."""


async def launch_worker(launch: Launch) -> Worker:
    """Starts a worker in its own session, so that Ctrl-C in a terminal reaches only the API process.

    A rank whose host has a name for ssh runs on that machine, behind an ssh process on this one.

    The worker's end of the socket is its stdin: on macOS uvloop then uses posix_spawn, and would fork for any other
    inherited descriptor. Raises ModelLoadFailed if MLX has no backend.
    """
    fault = why_mlx_cannot_run()
    if fault is not None:
        raise ModelLoadFailed(fault)
    membership = launch.membership
    environment = membership.environment if membership is not None else {}
    is_remote = membership is not None and membership.host.ssh is not None
    ours, theirs = socket.socketpair()
    try:
        process = await asyncio.create_subprocess_exec(
            *(
                remote_command(membership.host, environment)
                if membership is not None and is_remote
                else worker_command()
            ),
            env={**worker_environment(), **({} if is_remote else environment)},
            stdin=theirs.fileno(),
            stdout=theirs.fileno() if is_remote else asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except BaseException as exc:
        ours.close()
        if is_remote and isinstance(exc, FileNotFoundError):
            raise ModelLoadFailed("There is no ssh, which starts the other ranks. Install OpenSSH's client.") from exc
        raise
    finally:
        theirs.close()
    reader, writer = await asyncio.open_connection(sock=ours)
    writer.write(encode_down(launch))
    return Worker(process, reader, writer)


def worker_command() -> list[str]:
    """The command of a worker; everything else is sent over the socket on its stdin."""
    return [sys.executable, "-m", "mlx_manager.mlx_server.engine.worker"]


def remote_command(host: RankHost, environment: Mapping[str, str]) -> list[str]:
    """The command that starts a worker on another machine, whose stdin and stdout ssh connects to ours."""
    assert host.ssh is not None
    python = host.python if host.python is not None else sys.executable
    variables = [f"{name}={value}" for name, value in environment.items()]
    remote = ["env", *variables, python, "-m", "mlx_manager.mlx_server.engine.remote_worker"]
    return [*SSH_COMMAND, "--", host.ssh, shlex.join(remote)]


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

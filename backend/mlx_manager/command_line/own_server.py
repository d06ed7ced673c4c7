"""A server for one command, in its own process and session. It ends with the command."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from mlx_manager.command_line.connection import (
    ANSWER_SECONDS,
    Server,
    ServerUnreachable,
    find_server,
    key_of_settings,
)
from mlx_manager.command_line.console import USAGE, CommandFailed, note
from mlx_manager.mlx_server.utils.mlx_backend import why_mlx_cannot_run

POLL_SECONDS = 0.1
END_SECONDS = 15
LAST_LINES = 5
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def server_for(
    model: str | None,
    base_url: str | None,
    api_key: str | None,
    *,
    purpose: str,
    quiet: bool = False,
    lasting_address: bool = False,
) -> Iterator[Server]:
    """Opens the running server. Starts one for `purpose` if none runs or the running one does not have the model."""
    server = find_server(base_url, api_key)
    obstacle = None if base_url is not None else _obstacle(server, model)
    if obstacle is None:
        yield server
        return
    if not quiet:
        note(f"{obstacle}. Starting one for {purpose}.")
    with own_server(model, lasting_address) as server:
        yield server


def _obstacle(server: Server, model: str | None) -> str | None:
    """Why the command needs its own server; None if it does not."""
    try:
        if model is None or server.serves(model):
            server.get("/health")
            return None
    except ServerUnreachable:
        return f"No server answers at {server.root}"
    return f"The server at {server.root} does not serve {model}"


@contextlib.contextmanager
def own_server(model: str | None, lasting_address: bool = False) -> Iterator[Server]:
    """A server that has loaded `model` or the default model. Raises CommandFailed if it fails.

    With `lasting_address` it listens on the port of the settings if that is free: clients may keep its address.
    """
    fault = why_mlx_cannot_run()
    if fault is not None:
        raise CommandFailed(fault)
    port = _free_port(lasting_address)
    settings = {"HOST": "127.0.0.1", "PORT": str(port), "DRAIN_TIMEOUT_SECONDS": "1", "LOG_LEVEL": "INFO"}
    if model is not None:
        settings["DEFAULT_MODEL"] = model
    environment = os.environ | {f"MLX_SERVER_{name}": value for name, value in settings.items()}
    with tempfile.TemporaryDirectory(prefix="mlx-manager-") as folder, signals_end_the_block():
        log = Path(folder) / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlx_manager.mlx_server.main"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal goes only to the command
            )
        server = Server(f"http://127.0.0.1:{port}", key_of_settings())
        try:
            _wait_until_ready(server, process, log)
            yield server
        finally:
            _end(process)


def _wait_until_ready(server: Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Waits as long as a download takes; Ctrl-C ends it."""
    with server.client(httpx.Client, timeout=ANSWER_SECONDS) as client:
        while process.poll() is None:
            readiness = _readiness(client, server)
            if readiness.get("status") == "ready":
                return
            if readiness.get("status") == "failed":
                raise CommandFailed(str(readiness.get("error", "The model cannot be loaded.")))
            time.sleep(POLL_SECONDS)
    stderr_tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-LAST_LINES:])
    if process.returncode == USAGE:  # its last lines give the reason
        raise CommandFailed(stderr_tail)
    raise CommandFailed(f"The server ended while it started, with status {process.returncode}:\n{stderr_tail}")


def _readiness(client: httpx.Client, server: Server) -> dict[str, Any]:
    try:
        answer = client.get(f"{server.root}/ready").json()
    except (httpx.TransportError, ValueError):  # not listening yet
        return {}
    return answer if isinstance(answer, dict) else {}


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def signals_end_the_block() -> Iterator[None]:
    """Makes SIGHUP and SIGTERM end what the command started. By default they would leave it running."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in _ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port(that_of_settings: bool) -> int:
    from mlx_manager.mlx_server.config import mlx_server_settings

    for wanted in (mlx_server_settings.port, 0) if that_of_settings else (0,):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that ended a moment ago does not count
            probe.bind(("127.0.0.1", wanted))
            return int(probe.getsockname()[1])
    raise CommandFailed("No port of 127.0.0.1 is free. End some programs, and try again.")

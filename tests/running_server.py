"""The real server in a process of its own, as a user starts it, for tests that go in over HTTP."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

START_SECONDS = 60.0
MODULE = (sys.executable, "-m", "mlx_manager.mlx_server.main")
BACKEND = Path(__file__).parent.parent / "backend"


@dataclass(frozen=True)
class RunningServer:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60)

    def chat(self, content: str, **parameters: Any) -> dict[str, Any]:
        """The response body of one chat turn with the demo model; fails on any status but 200."""
        body = {"model": "demo", "messages": [{"role": "user", "content": content}], "temperature": 0, **parameters}
        response = self.post("/v1/chat/completions", body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    @contextlib.contextmanager
    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Iterator[str]]:
        """The `data:` payloads of a stream, as they come."""
        with httpx.stream("POST", f"{self.url}{path}", json={**body, "stream": True}, timeout=60) as response:
            assert response.status_code == 200, response.read()
            yield (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"The server is not ready after {START_SECONDS} s:\n{self.log.read_text()}")

    def wait_for_log(self, text: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)


@contextlib.contextmanager
def running_server(
    folder: Path, *, wait: bool = True, command: Sequence[str] = MODULE, **settings: object
) -> Iterator[RunningServer]:
    """Starts the server with `MLX_SERVER_<NAME>` settings and ends it with SIGTERM; its log lies in `folder`."""
    port = _free_port()
    environment = {name: value for name, value in os.environ.items() if "LOGFIRE" not in name}
    environment["MLX_SERVER_PORT"] = str(port)
    if command is MODULE:
        environment["PYTHONPATH"] = str(BACKEND)
    environment |= {f"MLX_SERVER_{name.upper()}": str(value) for name, value in settings.items()}
    log = folder / f"server-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=folder)
    server = RunningServer(process, f"http://127.0.0.1:{port}", log)
    try:
        if wait:
            server.wait_until_ready()
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_exit(process: psutil.Process, seconds: float = 10.0) -> None:
    """Fails unless the process ends, or is a zombie that its parent has yet to collect, in time."""
    deadline = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"{process} is still there"
        time.sleep(0.02)


def chunks_of(payloads: Iterator[str]) -> list[dict[str, Any]]:
    """All chunks of a stream, which must end with [DONE]."""
    received = list(payloads)
    assert received[-1] == "[DONE]"
    return [json.loads(payload) for payload in received[:-1]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

"""The real server in a process of its own, as a user starts it, for tests that go in over HTTP."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

T = TypeVar("T")
HANG_SECONDS = 300.0
"""A limit against hanging, which the slowest machine does not come near. It measures nothing."""
MODULE = (sys.executable, "-m", "mlx_manager.mlx_server.main")
BOUNDED = Path(__file__).parent / "bounded_server.py"
BACKEND = Path(__file__).parent.parent / "backend"


@dataclass(frozen=True)
class RunningServer:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def host(self) -> str:
        return httpx.URL(self.url).host

    @property
    def port(self) -> int | None:
        return httpx.URL(self.url).port

    def workers(self) -> list[psutil.Process]:
        """Those that are there; a process that was only just forked is not yet one, and holds the server's loop up."""
        return [child for child in psutil.Process(self.process.pid).children(recursive=True) if _is_worker(child)]

    def worker(self) -> psutil.Process:
        """The only one; waits for it, and for those before it to be gone."""
        return eventually(lambda: self.workers(), lambda workers: len(workers) == 1)[0]

    def readiness(self) -> dict[str, Any]:
        """What /ready says; its HTTP status must agree."""
        response = httpx.get(f"{self.url}/ready", timeout=HANG_SECONDS)
        body: dict[str, Any] = response.json()
        assert response.status_code == (200 if body["status"] == "ready" else 503), body
        return body

    def wait_for_status(self, *statuses: str) -> dict[str, Any]:
        return eventually(self.readiness, lambda body: body["status"] in statuses)

    def holdings(self) -> tuple[int, int]:
        """How many descriptors the API process has, and how many workers: a fault must not leave more behind."""
        return psutil.Process(self.process.pid).num_fds(), len(self.workers())

    def wait_until_nothing_is_left_of_it(self, before: tuple[int, int]) -> None:
        """Waits until the server has no more descriptors than `before`, and as many workers."""
        eventually(self.holdings, lambda now: now[0] <= before[0] and now[1] == before[1])

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=HANG_SECONDS)

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
        with httpx.stream("POST", f"{self.url}{path}", json={**body, "stream": True}, timeout=HANG_SECONDS) as response:
            assert response.status_code == 200, response.read()
            yield (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + HANG_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"The server is not ready after {HANG_SECONDS} s:\n{self.log.read_text()}")

    def wait_for_log(self, text: str) -> None:
        deadline = time.monotonic() + HANG_SECONDS
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)


def eventually(look: Callable[[], T], good: Callable[[T], bool], seconds: float = HANG_SECONDS) -> T:
    """The first good one of what `look` gives; fails with the last bad one when none comes in time."""
    deadline = time.monotonic() + seconds
    while not good(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def running_server(
    folder: Path,
    *,
    wait: bool = True,
    command: Sequence[str] = MODULE,
    bounds: Mapping[str, float] | None = None,
    **settings: object,
) -> Iterator[RunningServer]:
    """Starts the server with `MLX_SERVER_<NAME>` settings and ends it with SIGTERM; its log lies in `folder`.

    `bounds` are those of `Bounds` that are to be other than a user's.
    """
    if bounds is not None:
        command = (sys.executable, "-P", str(BOUNDED), json.dumps(bounds))
    port = free_port()
    environment = environment_of_server(settings | {"port": port}, from_source=command[0] == sys.executable)
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
            process.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def environment_of_server(settings: Mapping[str, object], *, from_source: bool = True) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if "LOGFIRE" not in name}
    if from_source:
        environment["PYTHONPATH"] = os.pathsep.join([str(BACKEND), *filter(None, [os.environ.get("PYTHONPATH")])])
    return environment | {f"MLX_SERVER_{name.upper()}": str(value) for name, value in settings.items()}


def wait_for_exit(process: psutil.Process, seconds: float = HANG_SECONDS) -> None:
    """Fails unless the process ends, or is a zombie that its parent has yet to collect, in time."""
    deadline = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"{process} is still there"
        time.sleep(0.02)


def chunks_of(payloads: Iterator[str]) -> list[dict[str, Any]]:
    """All chunks of a stream, which must end with [DONE]."""
    received = list(payloads)
    assert received[-1] == "[DONE]", received[-1]
    return [json.loads(payload) for payload in received[:-1]]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "mlx_manager.mlx_server.engine.worker" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

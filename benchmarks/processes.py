"""Starts the processes to measure, the server and the raw engine, and reads their CPU time and memory."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.load import Target
from benchmarks.workload import Measured, ReadyPrompt, Workload

START_SECONDS = 600
BACKEND = Path(__file__).parents[1] / "backend"
"""Measures the server of this checkout, whichever one is installed."""
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}
"""One core for the engine and one for the API."""


@dataclass(frozen=True, slots=True)
class Usage:
    api_cpu_seconds: float
    engine_cpu_seconds: float


@dataclass(frozen=True, slots=True)
class PeakMemory:
    api_mb: float
    engine_mb: float


@dataclass(frozen=True, slots=True)
class Server:
    """The server under test. A server that was started elsewhere has no CPU and memory figures."""

    target: Target
    process: psutil.Process | None = None

    def cpu(self) -> Usage | None:
        if self.process is None:
            return None
        return Usage(_cpu_seconds([self.process]), self.worker_cpu_seconds())

    def peak_memory(self) -> PeakMemory | None:
        """Since the start of the processes: the API, and all workers together."""
        if self.process is None:
            return None
        return PeakMemory(_peak_mb(self.process), sum(map(_peak_mb, self._workers())))

    def worker_cpu_seconds(self) -> float:
        return _cpu_seconds(self._workers())

    def _workers(self) -> list[psutil.Process]:
        return self.process.children(recursive=True) if self.process is not None else []


@contextmanager
def our_server(model: Path, log: Path, *others: Path, **variables: str) -> Iterator[Server]:
    """Serves the model and the `others`, with `variables` in the environment."""
    port = free_port()
    command = [sys.executable, "-m", "mlx_manager.mlx_server.main"]
    settings = {"MLX_SERVER_PORT": str(port), "MLX_SERVER_DEFAULT_MODEL": str(model)}
    settings["MLX_SERVER_AVAILABLE_MODELS"] = ",".join(map(str, others))
    packages = os.pathsep.join([str(BACKEND), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **ENVIRONMENT, **settings, **variables, "PYTHONPATH": packages}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/ready")
        yield Server(Target(f"http://127.0.0.1:{port}", model.name), psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


class RawEngine:
    """`benchmarks.raw_engine` on the same model, with the same BLAS as the server's worker."""

    def __init__(self, model: Path) -> None:
        from mlx_manager.mlx_server.engine.launch import worker_environment

        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.raw_engine", str(model)],
            env={**worker_environment(), **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def run(self, workload: Workload) -> Measured:
        return Measured(**self._ask({"workload": asdict(workload)}))

    def lean_rate(self, workload: Workload) -> float:
        """Tokens per second of the lean loop."""
        return float(self._ask({"lean": asdict(workload)})["tokens_per_second"])

    def ttft(self, prompt: ReadyPrompt) -> float:
        """Seconds from the prompt's text to its first token."""
        return float(self._ask({"ready_prompt": asdict(prompt)})["ttft"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@dataclass(frozen=True, slots=True)
class Place:
    """The subject of a section: the server, the raw engine if there is a comparison, and the model's name."""

    server: Server
    raw: RawEngine | None
    model: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{url} did not answer with 200 within {START_SECONDS} s. Check the server's log.")


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _peak_mb(process: psutil.Process) -> float:
    """The process's peak resident memory, or its current one on macOS, which does not report the peak."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024
    except OSError:
        return float(process.memory_info().rss) / 2**20

"""The server of a soak: the demo model and two others, of which only one fits beside it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks.models import SMALL, make_model
from benchmarks.processes import BACKEND, ENVIRONMENT, free_port, wait_until_ready
from benchmarks.soak.faults import write_settings
from benchmarks.soak.samples import Sample, take_sample
from benchmarks.soak.traffic import OTHERS

KEEP_ALIVE_SECONDS = 1_000
QUIET_SECONDS = 20.0
"""This long after the last client left, no request may be running."""
SPARE_DESCRIPTORS = 12
"""Allowance for one more model: its worker has a socket and pipes."""
END_SECONDS = 30.0
SETTINGS = {
    "MAX_MODELS": 2,
    "MAX_QUEUE": 16,
    "MAX_MEMORY_GB": 1,
    "PREFIX_CACHE_GB": 0.02,
    "WORKER_TIMEOUT_SECONDS": 5,
    "DRAIN_TIMEOUT_SECONDS": 10,
    "HUB_CACHE": "false",
}


@dataclass(slots=True)
class Stage:
    """`failures` lists failures of the server as a whole; it is complete after the server's exit."""

    url: str
    process: psutil.Process
    log: Path
    settings_file: Path
    failures: list[str] = field(default_factory=list)

    def sample(self) -> Sample:
        return take_sample(self.process, 0.0, None)

    def check_quiet(self, before: Sample) -> None:
        """Checks that no generation or descriptor is left after all clients left, and that the server is ready."""
        deadline = time.monotonic() + QUIET_SECONDS
        while (fault := self._unrest(before)) is not None:
            if time.monotonic() > deadline:
                self.failures.append(f"{QUIET_SECONDS:g} s after the last client had left, {fault}")
                return
            time.sleep(0.2)

    def _unrest(self, before: Sample) -> str | None:
        ready = httpx.get(f"{self.url}/ready", timeout=QUIET_SECONDS)
        if ready.status_code != 200:
            return f"/ready answered {ready.text[:200]}"
        for model in httpx.get(f"{self.url}/admin/pool", timeout=QUIET_SECONDS).json()["models"]:
            if sum(model["sequences"].values()):
                return f"{model['id']} was still at work: {model['sequences']}"
        descriptors = self.sample().descriptors
        limit = before.descriptors + SPARE_DESCRIPTORS
        return f"{descriptors} descriptors were open, of {limit} at most" if descriptors > limit else None


@contextmanager
def staged_server(folder: Path) -> Iterator[Stage]:
    folder.mkdir(parents=True, exist_ok=True)
    models = [make_model(folder / "models" / name, SMALL) for name in OTHERS]
    write_settings(folder / "mlx-manager.toml", KEEP_ALIVE_SECONDS)
    port = free_port()
    settings = SETTINGS | {"PORT": port, "AVAILABLE_MODELS": ",".join(str(model.resolve()) for model in models)}
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MLX_SERVER_", "LOGFIRE_"))}
    given = {f"MLX_SERVER_{name}": str(value) for name, value in settings.items()}
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlx_manager.mlx_server.main"],
            env={**own, **ENVIRONMENT, **given, "PYTHONPATH": str(BACKEND)},
            stdout=output,
            stderr=output,
            cwd=folder,
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/ready")
        stage = Stage(f"http://127.0.0.1:{port}", psutil.Process(process.pid), log, folder / "mlx-manager.toml")
        yield stage
        stage.failures += _end(process, log)
    finally:
        process.kill()
        process.wait()


def _end(process: "subprocess.Popen[bytes]", log: Path) -> list[str]:
    """Sends SIGTERM. Returns failures of the shutdown."""
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        return [f"the server was still there {END_SECONDS:g} s after SIGTERM"]
    failures = [f"after SIGTERM the server exited with status {status}"] if status else []
    _, left = psutil.wait_procs(workers, timeout=5)
    failures += [f"the server left a process behind: {worker}" for worker in left]
    text = log.read_text("utf-8", "replace")
    if "Traceback" in text:
        begins = text.index("Traceback")
        failures.append(f"the server's log has {text.count('Traceback')} tracebacks: {text[begins : begins + 1500]}")
    return failures

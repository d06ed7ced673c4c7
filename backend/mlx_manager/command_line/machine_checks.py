"""The checks of `doctor` that need no settings: the platform, MLX, memory, limits, and what is installed."""

import importlib.metadata
import json
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_manager.command_line import mac_checks
from mlx_manager.command_line.check import Check
from mlx_manager.command_line.console import format_bytes
from mlx_manager.mlx_server import machine
from mlx_manager.mlx_server.bounds import Bounds
from mlx_manager.mlx_server.utils import macos, mlx_backend
from mlx_manager.mlx_server.utils.descriptors import descriptors_for

PROBE_SECONDS = 120
CRITICAL_BYTES = 1024**3
PACKAGES = ("mlx-manager", "mlx", "mlx-lm", "transformers", "huggingface-hub")


def checks() -> Iterator[Check]:
    yield _platform()
    yield _versions()
    yield from _mlx()
    yield _memory()
    yield _open_files()


def _platform() -> Check:
    found = f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}"
    if sys.platform == "darwin" and platform.machine() != "arm64":
        return Check("platform", "broken", found, "MLX needs Apple silicon, and a Python built for arm64")
    if sys.platform not in ("darwin", "linux"):
        return Check("platform", "broken", found, "MLX runs on macOS and Linux")
    return Check("platform", "ok", found)


def _versions() -> Check:
    installed = {name: _version(name) for name in PACKAGES}
    found = ", ".join(f"{name} {version}" for name, version in installed.items() if version is not None)
    missing = [name for name, version in installed.items() if version is None]
    if missing:
        return Check("versions", "broken", found, f"install {', '.join(missing)}: pip install mlx-manager")
    return Check("versions", "ok", found)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _mlx() -> Iterator[Check]:
    """The build and the device of a worker, and the BLAS that it multiplies with."""
    builds = ", ".join(mlx_backend.installed_builds()) or "MLX"
    missing = mlx_backend.why_mlx_cannot_run()
    if missing is not None:
        yield Check("MLX", "broken", "MLX has no backend", missing)
        return
    try:
        probe = _probe()
    except ValueError as exc:
        remedy = mlx_backend.why_builds_conflict() or "reinstall it: pip install --force-reinstall mlx"
        yield Check("MLX", "broken", f"{builds}: {exc}", remedy)
        return
    found = f"{builds} {probe['version']} on {probe['device']}"
    if probe["memory_bytes"] is not None:
        found += f", which has {format_bytes(probe['memory_bytes'])} for it"
    on_cpu = "cpu" in probe["device"]
    yield _fit(found, on_cpu)
    yield _blas(on_cpu, probe)
    mac = macos.this_mac()
    if mac is not None and probe["memory_bytes"] is not None:
        facts = mac_checks.read_facts(mac, probe["generation"], probe["memory_bytes"], machine.memory_bytes())
        yield from mac_checks.checks(facts)


def _fit(found: str, on_cpu: bool) -> Check:
    """Checks that the installed build fits the device that MLX finds, and that this is the machine's best device."""
    conflict = mlx_backend.why_builds_conflict()
    if conflict is not None:
        return Check("MLX", "broken", found, conflict)
    if on_cpu and sys.platform == "linux" and not mlx_backend.computes_on_cpu():
        remedy = f"check the driver with nvidia-smi, or run {mlx_backend.install_command('cpu')} to run without a GPU"
        return Check("MLX", "broken", f"{found}: the CUDA build finds no GPU", remedy)
    if on_cpu and shutil.which("nvidia-smi") is not None:
        remedy = (
            "this machine has an NVIDIA GPU: pip uninstall -y mlx-cpu && "
            f"{mlx_backend.install_command('cuda13')} (cuda12 for CUDA 12)"
        )
        return Check("MLX", "warning", found, remedy)
    return Check("MLX", "ok", found)


def _probe() -> dict[str, Any]:
    """What `mlx_probe` prints in a worker's environment. Raises ValueError with the reason of a failure."""
    from mlx_manager.mlx_server.engine.launch import worker_environment

    command = [sys.executable, "-m", "mlx_manager.command_line.mlx_probe"]
    try:
        ran = subprocess.run(
            command, env=worker_environment(), capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise ValueError(f"timed out after {PROBE_SECONDS} s") from exc
    if ran.returncode != 0:
        last_line = next(iter(ran.stderr.strip().splitlines()[-1:]), "no output")
        raise ValueError(f"ended with status {ran.returncode}: {last_line}")
    probe: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return probe


def _blas(on_cpu: bool, probe: dict[str, Any]) -> Check:
    speed = f"{probe['gigaflops']:,.0f} GFLOP/s for a float32 product"
    if not on_cpu or sys.platform != "linux":
        return Check("BLAS", "ok", speed)
    if probe["openblas"]:
        return Check("BLAS", "ok", f"OpenBLAS, {speed}")
    return Check("BLAS", "warning", f"MLX's own, which is slow: {speed}", "apt-get install libopenblas0-pthread")


def _memory() -> Check:
    total, available = machine.memory_bytes(), _available_bytes()
    found = f"{format_bytes(total)}" + (f", {format_bytes(available)} available" if available is not None else "")
    if available is not None and available < CRITICAL_BYTES:
        return Check("memory", "warning", found, "close other programs, or choose a smaller model")
    return Check("memory", "ok", found)


def _available_bytes() -> int | None:
    """None if the system does not report it (macOS)."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _open_files() -> Check:
    """The server raises the limit itself, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = descriptors_for(Bounds().max_connections)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return Check("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft}")
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        return Check("open files", "ok", f"at most {soft}, which the server raises to {wanted}")
    remedy = f"ulimit -n {wanted} before the start; otherwise the server refuses many concurrent clients"
    return Check("open files", "warning", f"at most {hard}", remedy)

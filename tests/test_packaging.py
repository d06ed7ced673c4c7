"""The wheel: it holds the demo model, and serves from an environment that has never seen this checkout."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from mlx_manager.web import page_files
from tests.running_server import HANG_SECONDS, running_server

ROOT = Path(__file__).parent.parent


def run(*command: str | Path) -> None:
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert ran.returncode == 0, ran.stderr


def test_wheel_serves_the_demo_model_from_a_fresh_environment(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("mlx_manager-*.whl")
    packed = zipfile.ZipFile(wheel).namelist()
    assert "mlx_manager/demo/model.safetensors" in packed
    assert {f"mlx_manager/web/{name}" for name in page_files()} <= set(packed)
    assert not [name for name in packed if name.startswith(("tests", "scripts", "backend"))]

    fresh = tmp_path / "fresh"
    run(sys.executable, "-m", "venv", "--without-pip", fresh)
    (site_packages,) = fresh.glob("lib/python*/site-packages")
    # What it depends on is the developer's; the package itself is found nowhere but in the wheel.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    run(*pip, "--python", fresh / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    with running_server(tmp_path, command=(str(fresh / "bin" / "mlx-manager"), "serve")) as server:
        (worker,) = server.workers()
        assert worker.environ()["PYTHONPATH"].startswith(str(site_packages))
        assert server.chat("Count to 3")["choices"][0]["message"]["content"] == "1, 2, 3"


def test_only_the_extras_bring_a_build_of_mlx_and_each_another_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [need for need in project["dependencies"] if need.startswith("mlx[")]
    extras = project["optional-dependencies"]
    builds = {extra: [need.split(">")[0] for need in extras[extra]] for extra in ("cpu", "cuda12", "cuda13")}
    assert builds == {"cpu": ["mlx[cpu]"], "cuda12": ["mlx[cuda12]"], "cuda13": ["mlx[cuda13]"]}
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {"mlx", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "mlx-metal"} <= pinned


@pytest.mark.parametrize(
    ("nvidia_smi", "extra"),
    [
        (None, "cpu"),
        ("echo NVIDIA-SMI has failed because it could not communicate with the driver; exit 9", "cpu"),
        ("echo '| NVIDIA-SMI 550.54   Driver Version: 550.54   CUDA Version: 12.4     |'", "cuda12"),
        ("echo '| NVIDIA-SMI 580.65   Driver Version: 580.65   CUDA Version: 13.0     |'", "cuda13"),
        ("echo '| NVIDIA-SMI 590.44   KMD Version: 590.44   CUDA UMD Version: 13.1     |'", "cuda13"),
    ],
)
def test_make_chooses_the_build_by_the_driver(tmp_path: Path, nvidia_smi: str | None, extra: str) -> None:
    if nvidia_smi is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{nvidia_smi}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    command = ["make", "-n", "-B", "-C", str(ROOT), "setup", f"VENV={tmp_path}/venv"]
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    planned = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert f"-e '.[{extra}]'" in planned.stdout, planned.stderr
    assert f"-e '.[{extra},dev]'" in planned.stdout

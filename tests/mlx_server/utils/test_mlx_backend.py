"""Builds of MLX's library: none, one, and two that have overwritten each other, in site-packages made for the test."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.command_line.commands import MLX_MANAGER, environment
from tests.running_server import HANG_SECONDS, MODULE

PURELIB = Path(sysconfig.get_path("purelib"))
NO_BACKEND = "MLX is installed without a backend. Run pip install 'mlx-manager[cpu]'"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only on Linux MLX's library is a package of its own")


@pytest.fixture
def site_packages(tmp_path: Path) -> Path:
    """Ours, by links, but for MLX's library and the packages that bring it."""
    site = tmp_path / "site"
    site.mkdir()
    for entry in PURELIB.iterdir():
        if entry.name != "mlx" and not entry.name.startswith(("mlx_cpu", "mlx_cuda", "__editable__", "_mlx_manager")):
            (site / entry.name).symlink_to(entry)
    shutil.copytree(PURELIB / "mlx", site / "mlx", ignore=shutil.ignore_patterns("lib", "include"))
    return site


def install(site: Path, build: str, library_bytes: int) -> None:
    """The record of a build that wrote a library of that size."""
    records = site / f"{build.replace('-', '_')}-0.32.4.dist-info"
    records.mkdir()
    (records / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {build}\nVersion: 0.32.4\n")
    (records / "RECORD").write_text(f"mlx/lib/libmlx.so,sha256=x,{library_bytes}\n")


def run(site: Path, *command: str, path: str | None = None) -> "subprocess.CompletedProcess[str]":
    """With those site-packages in place of ours."""
    variables = environment(MLX_SERVER_PORT=0)
    variables["PYTHONPATH"] = os.pathsep.join([variables["PYTHONPATH"], str(site)])
    if path is not None:
        variables["PATH"] = f"{path}{os.pathsep}{variables['PATH']}"
    isolated = (command[0], "-S", *command[1:])
    return subprocess.run(isolated, env=variables, capture_output=True, text=True, input="Hi", timeout=HANG_SECONDS)


@pytest.mark.parametrize("command", [MODULE, (*MLX_MANAGER, "serve"), (*MLX_MANAGER, "chat")])
def test_installation_without_a_backend_ends_with_one_sentence_that_names_the_extra(
    site_packages: Path, command: tuple[str, ...]
) -> None:
    ended = run(site_packages, *command)
    (line,) = ended.stderr.splitlines()
    assert NO_BACKEND in line
    assert ended.returncode != 0


def test_extra_for_the_gpu_is_named_where_there_is_one(site_packages: Path, tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    ended = run(site_packages, *MODULE, path=str(tmp_path))
    assert "Run pip install 'mlx-manager[cuda13]'" in ended.stderr


def mlx_check(site: Path) -> dict[str, str]:
    ran = run(site, *MLX_MANAGER, "doctor", "--json")
    checks = json.loads(ran.stdout)
    return next(check for check in checks if check["name"] == "MLX")


def test_doctor_names_a_missing_backend(site_packages: Path) -> None:
    check = mlx_check(site_packages)
    assert check["state"] == "broken"
    assert NO_BACKEND in check["remedy"]


def test_doctor_names_builds_that_are_installed_over_each_other(site_packages: Path) -> None:
    (library,) = (PURELIB / "mlx" / "lib").glob("libmlx.so")
    (site_packages / "mlx" / "lib").symlink_to(library.parent)
    (site_packages / "mlx_cpu.libs").symlink_to(PURELIB / "mlx_cpu.libs")
    install(site_packages, "mlx-cpu", library.stat().st_size)
    assert mlx_check(site_packages)["state"] == "ok"
    install(site_packages, "mlx-cuda-13", 145_673_817)
    check = mlx_check(site_packages)
    assert check["state"] == "broken"
    assert "mlx-cpu, mlx-cuda-13 0.32.4 on Device(cpu" in check["found"]
    assert "overwrite each other; the MLX library in use is from mlx-cpu" in check["remedy"]
    assert "pip uninstall -y mlx-cpu mlx-cuda-13 && pip install 'mlx-manager[cuda13]'" in check["remedy"]


def test_doctor_names_a_cuda_build_that_finds_no_gpu(site_packages: Path) -> None:
    (library,) = (PURELIB / "mlx" / "lib").glob("libmlx.so")
    (site_packages / "mlx" / "lib").symlink_to(library.parent)
    (site_packages / "mlx_cpu.libs").symlink_to(PURELIB / "mlx_cpu.libs")
    install(site_packages, "mlx-cuda-12", library.stat().st_size)
    check = mlx_check(site_packages)
    assert check["state"] == "broken"
    assert "the CUDA build finds no GPU" in check["found"]
    assert "nvidia-smi" in check["remedy"]

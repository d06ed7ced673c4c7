"""What a worker does for the device that it finds: no GPU is needed, a `Device` says what MLX would."""

import os
import stat
from pathlib import Path

import pytest

from mlx_manager.mlx_server.engine.device import KERNELS_VARIABLE, emulates_bfloat16, keep_kernels
from mlx_manager.mlx_server.engine.messages import Device

CUDA = Device("cuda", 2**36, "NVIDIA H100", "sm_90")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(KERNELS_VARIABLE, "restored after the test")
    monkeypatch.delenv(KERNELS_VARIABLE)
    return tmp_path


def kept_in() -> str | None:
    return os.environ.get(KERNELS_VARIABLE)


def test_compiled_cuda_kernels_are_kept_in_a_folder_that_only_the_user_can_read(cache: Path) -> None:
    keep_kernels(CUDA)
    (folder,) = (cache / "mlx-manager" / "kernels").iterdir()
    assert kept_in() == str(folder)
    assert folder.name.endswith("-sm_90")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_folder_that_the_user_names_is_left_alone(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, "/mine")
    keep_kernels(CUDA)
    assert kept_in() == "/mine"
    assert list(cache.iterdir()) == []


def test_folder_that_cannot_be_made_costs_no_worker(cache: Path) -> None:
    (cache / "mlx-manager").touch()
    keep_kernels(CUDA)
    assert kept_in() is None


@pytest.mark.parametrize("device", [Device("cpu", None), Device("metal", 2**34, "Apple M1", "applegpu_g13g")])
def test_other_devices_keep_no_kernels(cache: Path, device: Device) -> None:
    keep_kernels(device)
    assert kept_in() is None


@pytest.mark.parametrize(
    ("device", "emulates"),
    [
        (Device("metal", 2**34, "Apple M1", "applegpu_g13g"), True),
        (Device("metal", 2**35, "Apple M2 Max", "applegpu_g14s"), True),
        (Device("metal", 2**35, "Apple M3", "applegpu_g15g"), False),
        (Device("metal", 2**35, "Apple M5", "applegpu_g17g"), False),
        (CUDA, False),
        (Device("cpu", None), False),
    ],
)
def test_m1_and_m2_emulate_bfloat16(device: Device, emulates: bool) -> None:
    assert emulates_bfloat16(device) == emulates

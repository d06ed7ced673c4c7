"""A library with the functions of macOS that the server calls, compiled from `fake_macos.c` for other systems."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from mlx_manager.mlx_server.utils.macos import MacOS

SOURCE = Path(__file__).with_name("fake_macos.c")


@functools.cache
def fake_library() -> ctypes.CDLL:
    """Skips the test where no C compiler is installed."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler is installed")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "fake_macos.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", built, SOURCE], check=True)
        return ctypes.CDLL(str(built))


def fake_mac() -> MacOS:
    return MacOS(fake_library(), fake_library)

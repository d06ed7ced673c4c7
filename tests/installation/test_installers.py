"""The wheel, installed by each installer into an environment of its own with everything from the registry: it serves.

`make test-install` provides the installers.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.running_server import HANG_SECONDS, running_server

ROOT = Path(__file__).parents[2]
INSTALLERS = ROOT / ".cache" / "installers" / "bin"
EXTRA = "[cpu]" if sys.platform == "linux" else ""
"""On a Mac no extra is needed."""
INSTALL_SECONDS = 1800


@dataclass(frozen=True, slots=True)
class Folders:
    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """The installers put environments and commands below `root`."""
        homes = {"UV_TOOL_DIR": "uv", "UV_TOOL_BIN_DIR": "bin", "PIPX_HOME": "pipx", "PIPX_BIN_DIR": "bin"}
        own = {name: str(self.root / folder) for name, folder in homes.items()}
        return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own

    def run(self, *command: str | Path) -> None:
        words = [str(word) for word in command]
        ran = subprocess.run(
            words, env=self.environment, cwd=self.root, capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
        assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, str(ROOT)], check=True, capture_output=True, timeout=HANG_SECONDS)
    (built,) = folder.glob("mlx_manager-*.whl")
    return built


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Folders]:
    yield Folders(tmp_path)
    shutil.rmtree(tmp_path)  # half a gigabyte


def with_pip(folders: Folders, package: str) -> Path:
    folders.run(sys.executable, "-m", "venv", folders.root / "venv")
    folders.run(folders.root / "venv/bin/pip", "install", package)
    return folders.root / "venv/bin/mlx-manager"


def with_uv(folders: Folders, package: str) -> Path:
    folders.run(INSTALLERS / "uv", "tool", "install", "--python", sys.executable, package)
    return folders.root / "bin/mlx-manager"


def with_pipx(folders: Folders, package: str) -> Path:
    folders.run(INSTALLERS / "pipx", "install", "--python", sys.executable, package)
    return folders.root / "bin/mlx-manager"


@pytest.mark.parametrize("install", [with_pip, with_uv, with_pipx])
def test_installed_wheel_serves_and_finds_its_machine_fit(
    install: Callable[[Folders, str], Path], folders: Folders, wheel: Path
) -> None:
    command = install(folders, f"{wheel}{EXTRA}")
    with running_server(folders.root, command=(str(command), "serve")) as server:
        assert server.chat("Count to 3")["choices"][0]["message"]["content"] == "1, 2, 3"
    folders.run(command, "doctor")
    folders.run(command, "service", "install", "--print")

"""What all commands have in common: help, versions, exit codes, and a quick start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_manager.mlx_server import __version__
from tests.command_line.commands import environment, mlx_manager
from tests.running_server import HANG_SECONDS

COMMANDS = ["serve", "models", "pull", "chat", "bench", "ps", "doctor", "service"]
ON_HTTP = ["models", "ps", "bench"]


def test_help_imports_neither_the_server_nor_anything_slow() -> None:
    slow = {"mlx", "mlx_lm", "transformers", "torch", "huggingface_hub", "httpx", "fastapi", "pydantic", "numpy"}
    found = f"[m for m in sys.modules if m.split('.')[0] in {slow} or 'mlx_server' in m]"
    command = f"import atexit, sys; from mlx_manager.cli import main; atexit.register(lambda: print({found})); main()"
    ran = subprocess.run(
        [sys.executable, "-c", command, "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert ran.returncode == 0
    assert ran.stdout.splitlines()[-1] == "[]"


def test_help_lists_every_command() -> None:
    help_text = mlx_manager("--help").stdout
    assert all(f" {command} " in help_text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_an_example(command: str) -> None:
    ran = mlx_manager(command, "--help")
    assert ran.returncode == 0
    assert f"Example: mlx-manager {command}" in ran.stdout


def test_version_is_the_package_s() -> None:
    assert mlx_manager("--version").stdout == f"mlx-manager {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("serve", "--port", "many"),
        ("serve", "--port", "70000"),
        ("serve", "--config", "no-such-file.toml"),
        ("pull",),
        ("bench", "--clients", "0"),
        *((command, "--base-url", "nonsense") for command in ON_HTTP),
    ],
)
def test_what_cannot_be_meant_ends_with_status_2_and_says_so_on_stderr(arguments: tuple[str, ...]) -> None:
    ran = mlx_manager(*arguments)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert "Error" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("command", ON_HTTP)
def test_a_server_that_is_not_there_ends_with_status_1_and_the_remedy(command: str) -> None:
    ran = mlx_manager(command, "--base-url", "http://127.0.0.1:9/v1")
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert "No server answers at http://127.0.0.1:9" in ran.stderr
    assert "mlx-manager serve" in ran.stderr


def test_serve_hands_its_config_to_the_server(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.touch()
    command = (
        "import atexit, os; from mlx_manager.cli import main;"
        "atexit.register(lambda: print(os.environ['MLX_SERVER_CONFIG'])); main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", command, "serve", "--config", "mine.toml", "--host", "no.such.host.invalid"],
        env=environment() | {"PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert ran.stdout == f"{config}\n"

"""Agents from npm and PyPI, each installed once into `.cache/`: `make test-agents` runs the tests that need them."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".cache"
SECONDS = 120


@cache
def install_agent(package: str, version: str, program: str) -> Path:
    """The program. It needs npm to be installed, and not to run."""
    if os.environ.get("TEST_AGENTS") != "1":
        pytest.skip("`make test-agents` runs this")
    folder = CACHE / package.rpartition("/")[2] / version
    if not (folder / "node_modules" / ".bin" / program).exists():
        folder.mkdir(parents=True, exist_ok=True)
        install = ["install", "--no-package-lock", "--no-audit", "--no-fund", "--foreground-scripts"]
        subprocess.run(["npm", *install, f"{package}@{version}"], cwd=folder, check=True, timeout=600)
    return folder / "node_modules" / ".bin" / program


@cache
def install_python_client(package: str, version: str) -> Path:
    """The Python of an environment of its own that has the package."""
    if os.environ.get("TEST_AGENTS") != "1":
        pytest.skip("`make test-agents` runs this")
    python = CACHE / package / version / "bin" / "python"
    if not (python.parent / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True, timeout=600)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{package}=={version}"]
        subprocess.run([python, *install], check=True, timeout=600)
        (python.parent / ".installed").touch()
    return python

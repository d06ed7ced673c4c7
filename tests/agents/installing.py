"""Agents from npm and PyPI, each installed once into `.cache/`: `make test-agents` runs the tests that need them."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

NPM = {
    "claude": ("@anthropic-ai/claude-code", "2.1.332", "claude"),
    "codex": ("@openai/codex", "0.171.0", "codex"),
    "opencode": ("opencode-ai", "1.18.33", "opencode"),
    "qwen": ("@qwen-code/qwen-code", "0.24.4", "qwen"),
    "continue": ("@continuedev/cli", "1.5.47", "cn"),
}
PYPI = {
    "aider": ("aider-chat", "0.86.2"),
    "llm": ("llm", "0.36"),
    "openai-agents": ("openai-agents", "0.24.0"),
    "smolagents": ("smolagents[openai]", "1.26.0"),
}
"""Packages, versions and programs by client."""
CACHE = Path(__file__).parents[2] / ".cache"
SECONDS = 600
"""A limit against hanging: the first prompt of Qwen Code has 24,000 tokens."""


def installed(client: str) -> Path:
    """The program of a client, or the Python of a library's own environment."""
    if os.environ.get("TEST_AGENTS") != "1":
        pytest.skip("`make test-agents` runs this")
    if client in NPM:
        return _from_npm(*NPM[client])
    python = _from_pypi(*PYPI[client])
    program = python.with_name(client)
    return program if program.exists() else python


@cache
def _from_npm(package: str, version: str, program: str) -> Path:
    """The program. It needs npm to be installed, and not to run."""
    folder = CACHE / package.rpartition("/")[2] / version
    if not (folder / "node_modules" / ".bin" / program).exists():
        folder.mkdir(parents=True, exist_ok=True)
        install = ["install", "--no-package-lock", "--no-audit", "--no-fund", "--foreground-scripts"]
        subprocess.run(["npm", *install, f"{package}@{version}"], cwd=folder, check=True, timeout=600)
    return folder / "node_modules" / ".bin" / program


@cache
def _from_pypi(package: str, version: str) -> Path:
    """The Python of an environment of its own that has the package."""
    python = CACHE / package / version / "bin" / "python"
    if not (python.parent / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True, timeout=600)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{package}=={version}"]
        subprocess.run([python, *install], check=True, timeout=600)
        (python.parent / ".installed").touch()
    return python

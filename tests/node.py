"""The openai package for Node.js, installed once into `.cache/`; tests that need it skip where it cannot be had."""

import contextlib
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from tests.running_server import HANG_SECONDS

VERSION = "7.55.0"
FOLDER = Path(__file__).parent.parent / ".cache" / "openai-node" / VERSION


@cache
def install_openai_node() -> Path:
    """A folder in which `import OpenAI from "openai"` works."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    if not (FOLDER / "node_modules" / "openai").is_dir():
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=FOLDER.parent))
        command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", f"openai@{VERSION}"]
        installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG_SECONDS)
        if installed.returncode != 0:
            pytest.skip(f"npm cannot install openai: {installed.stderr.strip()[-200:]}")
        with contextlib.suppress(OSError):  # another process of the tests was first
            folder.rename(FOLDER)
    return FOLDER

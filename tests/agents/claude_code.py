"""The real Claude Code, installed once into `.cache/`: `make test-agents` runs the tests that need it."""

import json
import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

VERSION = "2.1.332"
FOLDER = Path(__file__).parents[2] / ".cache" / "claude-code" / VERSION
SECONDS = 120


@cache
def install_claude_code() -> Path:
    """The program, 384 MB; it needs npm to be installed, and not to run."""
    program = FOLDER / "node_modules" / ".bin" / "claude"
    if os.environ.get("TEST_AGENTS") != "1":
        pytest.skip("`make test-agents` runs this")
    if not program.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        package = f"@anthropic-ai/claude-code@{VERSION}"
        install = ["install", "--no-package-lock", "--no-audit", "--no-fund", "--foreground-scripts", package]
        subprocess.run(["npm", *install], cwd=FOLDER, check=True, timeout=600)
    return program


@dataclass(frozen=True)
class ClaudeCode:
    """Runs without a login, without a network but the server, and with a home and a folder of its own."""

    program: Path
    home: Path
    folder: Path

    def ask(self, url: str, model: str, prompt: str, *arguments: str, key: str = "none") -> dict[str, Any]:
        """What `claude -p` prints as JSON; fails unless it ends well."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "IS_SANDBOX": "1",  # as root, too
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_AUTH_TOKEN": key,
            "ANTHROPIC_MODEL": model,
            "CLAUDE_CODE_MAX_RETRIES": "0",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
        ended = subprocess.run(
            [self.program, "-p", prompt, "--output-format", "json", *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert ended.returncode == 0, (ended.stdout, ended.stderr)
        result: dict[str, Any] = json.loads(ended.stdout)
        assert not result["is_error"], result
        return result

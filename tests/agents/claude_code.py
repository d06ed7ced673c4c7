"""The real Claude Code, 384 MB, as a user runs it."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.agents.installing import SECONDS


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

"""The real Codex CLI, 424 MB, as a user runs it."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.agents.installing import SECONDS

CONFIG = """
model_provider = "here"
model_catalog_json = "{catalog}"

[model_providers.here]
name = "here"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "HERE_API_KEY"
request_max_retries = 0
stream_max_retries = 0
"""


@dataclass(frozen=True)
class Codex:
    """Runs without a login, without a network but the server, and with a home and a folder of its own."""

    program: Path
    home: Path
    folder: Path

    def configure(self, url: str, models: dict[str, Any]) -> None:
        """`models` is what GET /v1/models answers."""
        catalog = self.home / "catalog.json"
        catalog.write_text(json.dumps(models))
        settings = self.home / ".codex" / "config.toml"
        settings.parent.mkdir(exist_ok=True)
        settings.write_text(CONFIG.format(url=url, catalog=catalog))

    def catalog(self) -> list[dict[str, Any]]:
        """The models as Codex understands them."""
        models: list[dict[str, Any]] = json.loads(self._run("debug", "models"))["models"]
        return models

    def ask(self, model: str, prompt: str, *arguments: str) -> list[dict[str, Any]]:
        """The events that `codex exec --json` prints; fails unless it ends well."""
        sandbox = "--dangerously-bypass-approvals-and-sandbox"
        printed = self._run("exec", "--json", "--skip-git-repo-check", sandbox, "-m", model, *arguments, prompt)
        events = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
        assert events[-1]["type"] == "turn.completed", events
        return events

    def _run(self, *arguments: str) -> str:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "HERE_API_KEY": "a-key"}
        ended = subprocess.run(
            [self.program, *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert ended.returncode == 0, (ended.stdout, ended.stderr)
        return ended.stdout


def items_of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The completed items of that type."""
    completed = (event["item"] for event in events if event["type"] == "item.completed")
    return [item for item in completed if item["type"] == kind]

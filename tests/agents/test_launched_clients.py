"""The clients that `mlx-manager launch` starts, as it starts them: answers, and tool loops on a scripted upstream."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.agents.installing import SECONDS, install_agent, install_python_client
from tests.agents.scripted import Scripted, calls, says
from tests.command_line.commands import MLX_MANAGER
from tests.faulty_upstream import FaultyUpstream, faulty_upstream
from tests.running_server import RunningServer, environment_of_server, running_server

COMMAND = "echo hello > made.txt"
SHELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "claude": ("Bash", {"command": COMMAND, "description": "Make a file"}),
    "codex": ("exec_command", {"cmd": COMMAND}),
    "opencode": ("bash", {"command": COMMAND, "description": "Make a file"}),
    "qwen": ("run_shell_command", {"command": COMMAND, "is_background": False, "description": "Make a file"}),
    "continue": ("Bash", {"command": COMMAND}),
}
"""Each client's own tool that runs a command."""
PROMPTS = {
    "claude": ("-p", "Make the file.", "--allowedTools", "Bash"),
    "codex": ("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "Make the file."),
    "opencode": ("run", "Make the file."),
    "qwen": ("-p", "Make the file.", "--yolo"),
    "continue": ("-p", "Make the file.", "--auto"),
}


def installed(name: str) -> Path:
    match name:
        case "claude":
            return install_agent("@anthropic-ai/claude-code", "2.1.332", "claude")
        case "codex":
            return install_agent("@openai/codex", "0.171.0", "codex")
        case "opencode":
            return install_agent("opencode-ai", "1.18.33", "opencode")
        case "qwen":
            return install_agent("@qwen-code/qwen-code", "0.24.4", "qwen")
        case "continue":
            return install_agent("@continuedev/cli", "1.5.47", "cn")
        case "aider":
            return install_python_client("aider-chat", "0.86.2").with_name("aider")
        case _:
            return install_python_client("llm", "0.36").with_name("llm")


@dataclass(frozen=True)
class Person:
    home: Path
    folder: Path

    def launch(self, name: str, model: str, front: RunningServer, *arguments: str) -> str:
        """What the client prints; fails unless it ends well."""
        environment = environment_of_server({"port": front.port}) | {
            "HOME": str(self.home),
            "PATH": os.pathsep.join([str(installed(name).parent), os.environ["PATH"]]),
            "PWD": str(self.folder),  # OpenCode goes by it
            "IS_SANDBOX": "1",  # Claude Code as root
        }
        ended = subprocess.run(
            [*MLX_MANAGER, "launch", name, "--model", model, "--", *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert ended.returncode == 0, (ended.stdout, ended.stderr)
        return ended.stdout


@pytest.fixture
def person(tmp_path: Path) -> Person:
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    return Person(tmp_path / "home", tmp_path / "work")


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultyUpstream]:
    scripts = {
        name: (calls(tool, json.dumps(arguments), "A file is to be made."), says("The file ", "is made."))
        for name, (tool, arguments) in SHELLS.items()
    }
    with faulty_upstream({}) as running:
        running.answers = Scripted(running, {**scripts, "talks": (says("The file ", "is made."),)})
        yield running


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, upstream: FaultyUpstream) -> Iterator[RunningServer]:
    upstreams = [{"name": "up", "kind": "openai", "base_url": upstream.url, "models": list(upstream.answers)}]
    with running_server(tmp_path_factory.mktemp("front"), upstreams=json.dumps(upstreams)) as running:
        yield running


@pytest.mark.parametrize("name", SHELLS)
def test_a_launched_agent_runs_a_tool_and_answers(
    person: Person, front: RunningServer, upstream: FaultyUpstream, name: str
) -> None:
    printed = person.launch(name, name, front, *PROMPTS[name])
    assert "The file is made." in printed
    assert (person.folder / "made.txt").read_text() == "hello\n"
    assert any(message["role"] == "tool" for message in upstream.bodies[-1]["messages"])


def test_launched_aider_answers(person: Person, front: RunningServer) -> None:
    quiet = ("--yes-always", "--no-git", "--no-check-update", "--analytics-disable", "--no-pretty")
    assert "The file is made." in person.launch("aider", "talks", front, "--message", "Make the file.", *quiet)


def test_launched_llm_answers(person: Person, front: RunningServer) -> None:
    assert person.launch("llm", "talks", front, "Make the file.").strip() == "The file is made."


def test_launched_llm_talks_with_the_demo_model(person: Person, front: RunningServer) -> None:
    assert person.launch("llm", "demo", front, "Count to 5").strip() == "1, 2, 3, 4, 5"

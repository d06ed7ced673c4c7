"""Claude Code against this server: on the demo model, and round a tool loop on a scripted upstream behind it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents.claude_code import ClaudeCode
from tests.agents.installing import installed
from tests.agents.scripted import Scripted, calls, says
from tests.faulty_upstream import FaultyUpstream, faulty_upstream
from tests.running_server import RunningServer, running_server

SLIM = ("--system-prompt", "You are a helpful assistant.")
COMMAND = "echo hello > made-by-claude.txt"


SCRIPT = (
    calls("Bash", json.dumps({"command": COMMAND, "description": "Make a file"}), "A file is to be made."),
    says("The file ", "is made."),
)


@pytest.fixture(scope="module")
def program() -> Path:
    return installed("claude")


@pytest.fixture
def claude(program: Path, tmp_path: Path) -> ClaudeCode:
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    return ClaudeCode(program, tmp_path / "home", tmp_path / "work")


@pytest.fixture(scope="module")
def upstream(program: Path) -> Iterator[FaultyUpstream]:
    with faulty_upstream({}) as running:
        running.answers = Scripted(running, {"scripted": SCRIPT})
        yield running


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, upstream: FaultyUpstream) -> Iterator[RunningServer]:
    settings: dict[str, Any] = {
        "upstreams": json.dumps([{"name": "up", "kind": "openai", "base_url": upstream.url, "models": ["scripted"]}]),
        "aliases": json.dumps({"claude-*": "scripted"}),
        "api_keys": "a-key",
    }
    with running_server(tmp_path_factory.mktemp("front"), **settings) as running:
        yield running


def test_a_question_to_the_demo_model_ends_well(front: RunningServer, claude: ClaudeCode) -> None:
    result = claude.ask(front.url, "demo", "Count to 4", *SLIM, "--tools", "Bash", key="a-key")
    assert (result["subtype"], result["num_turns"], result["stop_reason"]) == ("success", 1, "end_turn")
    assert result["result"]
    assert result["usage"]["cache_creation_input_tokens"] > 500


@pytest.mark.parametrize("model", ["scripted", "claude-opus-4-8"])
@pytest.mark.seen("tool loop", client="claude")
def test_a_tool_is_run_and_its_result_answered(
    front: RunningServer, upstream: FaultyUpstream, claude: ClaudeCode, model: str
) -> None:
    result = claude.ask(
        front.url, model, "Make the file.", *SLIM, "--tools", "Bash", "--allowedTools", "Bash", key="a-key"
    )
    assert (result["subtype"], result["num_turns"], result["result"]) == ("success", 2, "The file is made.")
    assert (claude.folder / "made-by-claude.txt").read_text() == "hello\n"
    asked, called, answered = (
        [message for message in upstream.bodies[-1]["messages"] if message["role"] == role]
        for role in ("user", "assistant", "tool")
    )
    assert asked
    assert json.loads(called[0]["tool_calls"][0]["function"]["arguments"])["command"] == COMMAND
    assert called[0]["reasoning_content"] == "A file is to be made."
    assert answered[0]["tool_call_id"] == called[0]["tool_calls"][0]["id"]

"""Claude Code against this server: on the demo model, and round a tool loop on a scripted upstream behind it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents.claude_code import ClaudeCode, install_claude_code
from tests.faulty_upstream import DONE, Answer, FaultyUpstream, faulty_upstream, sse
from tests.running_server import RunningServer, running_server

SLIM = ("--system-prompt", "You are a helpful assistant.")
COMMAND = "echo hello > made-by-claude.txt"


def chunk(finish_reason: str | None = None, **delta: Any) -> bytes:
    return sse({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


USAGE = sse({"choices": [], "usage": {"prompt_tokens": 900, "completion_tokens": 7}})
CALL = {"id": "call_1", "function": {"name": "Bash", "arguments": ""}}
ARGUMENTS = {"function": {"arguments": json.dumps({"command": COMMAND, "description": "Make a file"})}}
CALLS_BASH = Answer(
    (
        chunk(reasoning_content="A file is to be made."),
        chunk(tool_calls=[{"index": 0, **CALL}]),
        chunk(tool_calls=[{"index": 0, **ARGUMENTS}]),
        chunk("tool_calls"),
        USAGE,
        DONE,
    )
)
SAYS_DONE = Answer((chunk(content="The file "), chunk(content="is made."), chunk("stop"), USAGE, DONE))


class Scripted(dict[str, Answer]):
    """Calls the tool, and speaks once the conversation holds the tool's result."""

    def __init__(self) -> None:
        super().__init__({"scripted": CALLS_BASH})
        self.upstream: FaultyUpstream | None = None

    def __getitem__(self, model: str) -> Answer:
        assert self.upstream is not None
        has_result = any(message["role"] == "tool" for message in self.upstream.bodies[-1]["messages"])
        return SAYS_DONE if has_result else CALLS_BASH


@pytest.fixture(scope="module")
def program() -> Path:
    return install_claude_code()


@pytest.fixture
def claude(program: Path, tmp_path: Path) -> ClaudeCode:
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    return ClaudeCode(program, tmp_path / "home", tmp_path / "work")


@pytest.fixture(scope="module")
def upstream(program: Path) -> Iterator[FaultyUpstream]:
    with faulty_upstream({}) as running:
        scripted = Scripted()
        running.answers, scripted.upstream = scripted, running
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
